"""The same questions to twins of the model in which every mechanism acts (twin.py). Suspects: quantization,
gradients, optimizer.

Forward pass part by part over all positions that a row may have; texts of one row kept apart; then updates in
warm-up and on both sides of the stage boundary, with accumulation, clipping, decay and each objective,
against float64.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from itertools import chain

import torch

from bitnet.diagnose import check_numerics, check_optimizer, reference, reference_updates
from bitnet.diagnose.check_gradients import DIRECTION, LENGTH, LOSS
from bitnet.diagnose.finding import Check, Part
from bitnet.diagnose.reference_objectives import Wanted, wanted
from bitnet.diagnose.subject import Subject, Update, Watched, copy_of
from bitnet.diagnose.trace import off, random_ids, traced
from bitnet.diagnose.twin import KINDS, VOCABULARY, Kind, twin_of

FORWARD = Part(suspect="quantization", source="independent float64 computation")
BACKWARD = Part(
    suspect="gradients", source="independent float64 computation", explained_by=frozenset({"quantization"})
)
CLIPPING = Part(suspect="optimizer", source="arXiv:1211.5063; train.grad_clip_norm")
SHORT = 48  # tokens of a row where all layers are computed one after another


def twins(subject: Subject) -> Iterator[Check]:
    """All checks of this file, with the twin's name in each."""
    for kind in KINDS:
        twin = twin_of(subject, kind)
        for check in chain(forward(twin, kind), updates(twin)):
            yield dataclasses.replace(check, name=f"{check.name}, {kind.name} twin")


def forward(twin: Subject, kind: Kind) -> Iterator[Check]:
    """Layers, parts and whole, at every position; and the texts of one row."""
    model = twin.model
    ids = random_ids(VOCABULARY, 1, model.config.max_seq_length, twin.device)
    yield from check_numerics.layers(model)
    yield from check_numerics.parts([(model, *traced(model, ids))], ids)
    short = random_ids(VOCABULARY, 3, SHORT, twin.device)
    yield from check_numerics.whole(model, short, traced(model, short)[0])
    if kind.segments:
        yield texts_apart(model, short)


@torch.no_grad()
def texts_apart(model: torch.nn.Module, ids: torch.Tensor) -> Check:
    """Several texts in one row do not see each other."""
    segments = (torch.arange(ids.shape[1], device=ids.device) // 13).expand_as(ids)
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    right = reference.logits(weights, model.config, ids, segments)  # type: ignore[arg-type]
    error = off(model(ids, segments=segments), right)
    return FORWARD(
        "texts of one row are kept apart", "tokens attend to another text of their row, or not to their own"
    ).below({"logits": error}, check_numerics.WHOLE)


def updates(twin: Subject) -> Iterator[Check]:
    """Updates in the warm-up, then the last of stage 1 and the first of stage 2."""
    boundary = int(twin.training["stage1_end"])
    for start, which in ((0, "warm-up"), (boundary - 1, "stage boundary")):
        made = watched(twin, start, 2)
        for check in judged(twin, made, which):
            yield check if which in check.name else dataclasses.replace(check, name=f"{check.name}, {which}")


def watched(twin: Subject, start: int, count: int) -> list[Update]:
    """Real updates by the twin's own settings, objective included."""
    model = copy_of(twin, twin.model)
    optimizers = Watched(model, twin.new_optimizers(model))
    for number, report in enumerate(twin.train(model, optimizers, twin.task.source, start_step=start)):
        if len(optimizers.updates) <= number:
            optimizers.updates.append(Update())
        optimizers.updates[number].report = report
        if number + 1 == count:
            break
    return optimizers.updates


def judged(twin: Subject, made: Sequence[Update], which: str) -> Iterator[Check]:
    """Loss, penalty, gradient, clipping, rates and change of weights of updates."""
    done = [update for update in made if update.report is not None and update.rates is not None]
    yield BACKWARD("updates are made", "the optimizers were not asked to move").equal(len(done), 2)
    if not done:
        return
    right = [_wanted(twin, update) for update in done]
    yield from reported(done, right)
    yield from given(twin, done, right)
    yield from check_optimizer.rates_used(twin, done)
    yield from check_optimizer.changes(twin, done, which)


def _wanted(twin: Subject, update: Update) -> Wanted:
    assert update.report is not None
    return wanted(update.before, twin.config, update.report.batches, twin.training, update.report.step)


def reported(done: Sequence[Update], right: Sequence[Wanted]) -> Iterator[Check]:
    """The loss and the penalty that the loop reports."""
    gaps, penalties = {}, {}
    for update, true in zip(done, right, strict=True):
        assert update.report is not None
        at = f"update {update.report.step}"
        gaps[at] = abs(update.report.loss - true.loss) / max(1.0, abs(true.loss))
        penalties[at] = abs(update.report.penalty - true.penalty) / max(1.0, abs(true.penalty))
    yield BACKWARD("training loss is the mean over cases", "the loop reports another loss").below(
        gaps, LOSS, "nats"
    )
    yield BACKWARD("penalty is the mean over cases", "unlikelihood is another one than defined").below(
        penalties, LOSS, "nats"
    )


def given(twin: Subject, done: Sequence[Update], right: Sequence[Wanted]) -> Iterator[Check]:
    """The gradient that the optimizers are given: its direction, its length, and what clipping leaves of
    it.
    """
    limit = float(twin.training["grad_clip_norm"])
    turned: dict[str, float] = {}
    lengths: dict[str, float] = {}
    clipped: dict[str, float] = {}
    for update, true in zip(done, right, strict=True):
        assert update.report is not None
        at = f"update {update.report.step}"
        norm = reference_updates.norm_of(true.gradients)
        kept = reference_updates.norm_of(
            {name: gradient for name, gradient in update.gradients.items() if gradient is not None}
        )
        lengths[at] = abs(update.report.grad_norm / norm - 1) if norm else math.inf
        clipped[at] = abs(kept / min(update.report.grad_norm, limit) - 1)
        for name, wish in true.gradients.items():
            gradient = update.gradients.get(name)
            turned[f"{name}, {at}"] = math.inf if gradient is None else off(_unit(gradient), _unit(wish))
    yield BACKWARD("gradient equals the straight-through reference", "the direction is different").below(
        turned, DIRECTION, "distance of unit vectors"
    )
    yield BACKWARD(
        "gradient has the length of the mean's",
        "micro-batches are weighted otherwise than by their cases, or the sum is divided otherwise",
    ).below(lengths, LENGTH)
    yield CLIPPING(
        "clipping to the norm that was set",
        "what reaches the optimizers is shorter or longer than clipping leaves it",
    ).below(clipped, LENGTH)


def _unit(gradient: torch.Tensor) -> torch.Tensor:
    return gradient.double() / max(float(gradient.double().norm()), 1e-300)
