"""The checkpoints of a run: whole, loaded as they were stored, the newest first, and begun as the seed says.
Suspect: checkpoint.

Not here: whether updates repeat from them (check_run.py).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bitnet.diagnose.finding import STRONG, Check, Part
from bitnet.diagnose.subject import Subject
from bitnet.errors import BitnetError
from bitnet.files import read_json
from bitnet.run import checkpoint as checkpoints
from bitnet.run.layout import RunLayout

CHECKPOINT = Part("checkpoint", "state.json and the folders' names")


def kept(subject: Subject, layout: RunLayout) -> Iterator[Check]:
    """All checks of this file."""
    yield from whole_checkpoints(subject, layout)
    yield from newest(subject, layout)
    yield from began_as_seeded(subject, layout)


def whole_checkpoints(subject: Subject, layout: RunLayout) -> Iterator[Check]:
    """Every checkpoint verifies, and its weights are numbers."""
    problems = list(subject.damaged)
    for step in layout.checkpoint_steps():
        try:
            checkpoints.verify_checkpoint(layout.checkpoint(step))
        except BitnetError as error:
            problems.append(str(error))
    steps = layout.checkpoint_steps()
    yield CHECKPOINT("checkpoints are whole", problems[0] if problems else "there is none").holds(
        bool(steps) and not problems, len(set(problems)), f"0 of {len(steps)} damaged, and at least one there"
    )
    if subject.step in steps:
        try:
            stored = checkpoints.load_checkpoint(layout.checkpoint(subject.step))
        except BitnetError:
            return
        model = dict(subject.model.named_parameters())
        other = [
            name
            for name in model
            if name not in stored.model or not torch.equal(model[name].detach().cpu(), stored.model[name])
        ]
        odd = sorted(stored.model.keys() ^ model.keys())
        bad = [
            name
            for name, tensor in stored.optimizer.items()
            if not bool(torch.isfinite(tensor.float()).all())
        ]
        yield CHECKPOINT(
            "checkpoint loads as it was stored",
            f"differs: {', '.join((other + odd + bad)[:3])}",
            source="what is saved is restored, bit for bit",
        ).holds(
            not other and not odd and not bad,
            len(other) + len(odd) + len(bad),
            "0 tensors changed, missing or not finite",
        )
        yield CHECKPOINT(
            "checkpoint knows its step", "the folder's name and its state disagree", source="state.json"
        ).holds(
            stored.state.get("step") == subject.step == stored.step,
            stored.state.get("step"),
            str(subject.step),
        )


def newest(subject: Subject, layout: RunLayout) -> Iterator[Check]:
    """Where no checkpoint was named, the newest one is looked at, and the newest one is resumed from."""
    steps = layout.checkpoint_steps()
    if not steps or subject.damaged:
        return
    resumed = checkpoints.newest_good(layout, lambda problem: None, optimizer=False)
    found = [
        subject.step if not subject.step_named else max(steps),
        resumed.step if resumed is not None else None,
    ]
    yield CHECKPOINT(
        "the newest checkpoint is the one that loads",
        "an older checkpoint is loaded, and later updates are lost",
    ).equal(found, [max(steps)] * 2)
    told = {
        step: checkpoints.load_checkpoint(layout.checkpoint(step), optimizer=False).state
        for step in {steps[0], steps[-1]}
        if step
    }
    per_step = int(subject.training["tokens_per_step"])
    wrong = [
        step
        for step, state in told.items()
        if state.get("tokens_seen") != step * per_step or state.get("step") != step
    ]
    yield CHECKPOINT("checkpoints count their tokens", "the state belongs to another update").holds(
        not wrong, wrong, f"step * {per_step:,} in state.json"
    )


def began_as_seeded(subject: Subject, layout: RunLayout) -> Iterator[Check]:
    """The checkpoint of the start holds the weights of the seed, or those that the run was begun from."""
    here = torch.__version__ == read_json(layout.provenance).get("torch_version", torch.__version__)
    if 0 not in layout.checkpoint_steps() or not here or subject.training.get("start_from"):
        return
    try:
        first = checkpoints.load_checkpoint(layout.checkpoint(0), optimizer=False).model
    except BitnetError:
        return  # damaged: another check's finding
    fresh = {
        name: weight.detach().cpu() for name, weight in subject.new_model(subject.config).named_parameters()
    }
    other = [name for name in fresh if name not in first or not torch.equal(fresh[name], first[name])]
    yield CHECKPOINT(
        "the run began with the weights of its seed",
        "begins otherwise now; the seed, or how a model is initialised, has changed",
        weight=STRONG,
        explained_by=frozenset({"quantization"}),
    ).none(other, "parameters that differ from checkpoint 0")
