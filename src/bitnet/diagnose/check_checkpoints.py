"""The checkpoints of a run: whole, loaded as they were stored, the newest first, and begun as the seed says.
Suspect: checkpoint.

Not here: whether updates repeat from them (check_run.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from bitnet.diagnose.finding import STRONG, Check, Part
from bitnet.diagnose.subject import Subject
from bitnet.errors import BitnetError
from bitnet.files import read_json
from bitnet.run import checkpoint as checkpoints
from bitnet.run.checkpoint import Checkpoint
from bitnet.run.layout import RunLayout

CHECKPOINT = Part("checkpoint", "state.json and the folders' names")


def kept(subject: Subject, layout: RunLayout) -> Iterator[Check]:
    """All checks of this file."""
    yield whole_checkpoints(subject, layout)
    if subject.step in layout.checkpoint_steps():
        yield from loaded(subject, layout)
    if layout.checkpoint_steps() and not subject.damaged:
        yield newest(subject, layout)
        yield counted(subject, layout)
    yield from began_as_seeded(subject, layout)


def stored(layout: RunLayout, step: int) -> Checkpoint:
    """A checkpoint without its optimizer state."""
    return checkpoints.load_checkpoint(layout.checkpoint(step), optimizer=False)


def newest_step(layout: RunLayout) -> int | None:
    """The step of the checkpoint that a resume takes."""
    found = checkpoints.newest_good(layout, lambda problem: None, optimizer=False)
    return None if found is None else found.step


def different(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> list[str]:
    """Names whose tensors differ, or that only one of the two has."""

    def same(name: str) -> bool:
        return torch.equal(one[name].detach().cpu(), other[name].detach().cpu())

    changed = {name for name in one.keys() & other.keys() if not same(name)}
    return sorted(changed | (one.keys() ^ other.keys()))


def whole_checkpoints(subject: Subject, layout: RunLayout) -> Check:
    """Every checkpoint has the files that its manifest lists."""
    problems, steps = list(subject.damaged), layout.checkpoint_steps()
    for step in steps:
        try:
            checkpoints.verify_checkpoint(layout.checkpoint(step))
        except BitnetError as error:
            problems.append(str(error))
    return CHECKPOINT(
        "checkpoints are whole",
        problems[0] if problems else "there is none",
        source="sizes and SHA-256 of manifest.json",
    ).holds(
        bool(steps) and not problems, len(set(problems)), f"0 of {len(steps)} damaged, and at least one there"
    )


def loaded(subject: Subject, layout: RunLayout) -> Iterator[Check]:
    """The examined model has the weights of its checkpoint, and all that is stored there is finite."""
    try:
        checkpoint = checkpoints.load_checkpoint(layout.checkpoint(subject.step))
    except BitnetError:
        return  # damaged: the check before this one says so

    other = different(dict(subject.model.named_parameters()), checkpoint.model)
    infinite = [
        name
        for name, tensor in checkpoint.optimizer.items()
        if not bool(torch.isfinite(tensor.float()).all())
    ]
    yield CHECKPOINT(
        "checkpoint loads as it was stored", "differs", source="what is saved is restored, bit for bit"
    ).none(other + infinite, "tensors changed, missing or not finite")

    told = checkpoint.state.get("step")
    yield CHECKPOINT("checkpoint knows its step", "the folder's name and its state disagree").holds(
        told == subject.step == checkpoint.step, told, str(subject.step)
    )


def newest(subject: Subject, layout: RunLayout) -> Check:
    """Where no checkpoint was named, the newest one is examined, and a resume begins from it."""
    last = max(layout.checkpoint_steps())
    examined = last if subject.step_named else subject.step
    return CHECKPOINT(
        "the newest checkpoint is the one that loads",
        "an older checkpoint is loaded, and later updates are lost",
    ).equal([examined, newest_step(layout)], [last] * 2)


def counted(subject: Subject, layout: RunLayout) -> Check:
    """The first and the last checkpoint count their updates and tokens."""
    steps, per_step = layout.checkpoint_steps(), subject.settings.train.tokens_per_step
    wrong = []
    for step in {steps[0], steps[-1]} - {0}:
        state = stored(layout, step).state
        if state.get("tokens_seen") != step * per_step or state.get("step") != step:
            wrong.append(step)
    return CHECKPOINT("checkpoints count their tokens", "the state belongs to another update").holds(
        not wrong, wrong, f"step * {per_step:,} in state.json"
    )


def began_as_seeded(subject: Subject, layout: RunLayout) -> Iterator[Check]:
    """The checkpoint of the start holds the weights that the seed gives. Another version of torch may draw
    other numbers.
    """
    here = torch.__version__ == read_json(layout.provenance).get("torch_version", torch.__version__)
    if 0 not in layout.checkpoint_steps() or not here or subject.settings.train.start_from:
        return
    try:
        first = stored(layout, 0).model
    except BitnetError:
        return  # damaged: another check's finding

    fresh = dict(subject.new_model(subject.config).named_parameters())
    yield CHECKPOINT(
        "the run began with the weights of its seed",
        "begins otherwise now; the seed, or how a model is initialised, has changed",
        weight=STRONG,
        explained_by={"quantization"},
    ).none(different(fresh, first), "parameters that differ from checkpoint 0")
