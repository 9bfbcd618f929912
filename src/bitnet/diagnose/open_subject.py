"""Open what is to be examined: an experiment with a fresh model, or a run with its checkpoint."""

from __future__ import annotations

import torch

from bitnet.diagnose.subject import Subject, new_model
from bitnet.run.checkpoint import load_checkpoint, load_weights, newest_good
from bitnet.run.layout import RunReference
from bitnet.run.sessions import last_session
from bitnet.train.config import RunConfig
from bitnet.train.experiment import Experiment


def open_experiment(
    experiment: Experiment, variant: str, settings: RunConfig, device: torch.device, *, full: bool
) -> Subject:
    """A fresh model of an experiment, and its data. full: the slow checks are wanted too."""
    return Subject(
        name=f"{experiment.name} ({variant}), a fresh model",
        experiment=experiment,
        variant=variant,
        settings=settings,
        task=experiment.open(settings),
        model=new_model(settings.model, settings.train, device),
        full=full,
    )


def open_run(
    reference: RunReference,
    experiment: Experiment,
    variant: str,
    settings: RunConfig,
    device: torch.device,
    *,
    full: bool,
) -> Subject:
    """A run with the checkpoint that was named, or its newest good one; with fresh weights where none is
    whole, which is a finding.
    """
    layout, damaged = reference.layout, list[str]()
    if reference.step is None:
        checkpoint = newest_good(layout, damaged.append, optimizer=False)
    else:
        checkpoint = load_checkpoint(layout.checkpoint(reference.step), optimizer=False)

    task = experiment.open(settings)
    before = last_session(layout)
    model = new_model(settings.model, settings.train, device, before)
    if checkpoint is not None:
        load_weights(model, checkpoint)

    return Subject(
        name=layout.run_id,
        experiment=experiment,
        variant=variant,
        settings=settings,
        task=task,
        model=model,
        layout=layout,
        step=0 if checkpoint is None else checkpoint.step,
        step_named=reference.step is not None,
        damaged=damaged,
        before=before,
        full=full,
    )
