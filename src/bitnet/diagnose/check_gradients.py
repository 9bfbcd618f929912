"""What the loop hands to the optimizers, against the straight-through gradient of an independent float64
model. Suspect: gradients.

The loop makes two real updates of two micro-batches each, on narrow rows. Its reported loss must be the mean
cross-entropy over the scored tokens of both micro-batches, and the gradient that reaches the optimizers must
be the gradient of that mean, clipped. A gradient that points elsewhere is a fault of the backward pass; one
that only has the wrong length is a fault of scaling (a mean that is none) or of clipping.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from bitnet.data.stream import RowSource
from bitnet.diagnose import reference
from bitnet.diagnose.finding import STRONG, Check, Part, below, worst
from bitnet.diagnose.reference_objectives import Wanted, wanted
from bitnet.diagnose.reference_updates import norm_of
from bitnet.diagnose.subject import Subject, copy_of
from bitnet.diagnose.trace import off
from bitnet.diagnose.watch import PLAIN, Update, small_steps, watch

COLUMNS, ROWS, MICRO = 48, 2, 2
DIRECTION, LENGTH, LOSS = 0.05, 0.02, 2e-3
"""Allowed: relative distance of directions (values on the edge of an int8 code add up through the layers;
healthy models measured below 0.01, and 0.02 with int8 input gradients), relative error of the norm, and of
the loss in nats. With bf16 products four times as much."""
BACKWARD = Part(
    "gradients",
    "independent float64 computation on the batches that the loop reports; arXiv:1308.3432",
    explained_by=frozenset({"quantization"}),
)
DATA_TOO = replace(BACKWARD, explained_by=frozenset({"quantization", "data"}))
CLIPPING = Part("optimizer", "arXiv:1211.5063; train.grad_clip_norm", weight=STRONG)


def first_updates(subject: Subject, source: RowSource) -> list[Update]:
    """Two real updates from the weights under examination, on narrow rows."""
    sizes = small_steps(subject, ROWS, COLUMNS, MICRO)
    return watch(subject, copy_of(subject, subject.model), source, 2, **sizes)


def gradients(subject: Subject, updates: Sequence[Update]) -> Iterator[Check]:
    """All checks of this file, on the updates made."""
    slack = 4.0 if subject.bf16 else 1.0
    done = [update for update in updates if update.rates is not None]
    refused = f"the optimizers were not asked to move: {[update.report.refused for update in updates]}"
    yield DATA_TOO("updates are made", refused).equal(len(done), 2)
    if not done:
        return
    without = [name for name, gradient in done[0].gradients.items() if gradient is None or not gradient.any()]
    yield BACKWARD("gradient reaches every parameter", "no gradient").none(
        without, "parameters without gradient"
    )
    plain = {**subject.training, **PLAIN}
    right = [wanted(one.before, subject.config, one.report.batches, plain, one.report.step) for one in done]
    errors = compared(done, right, float(subject.training["grad_clip_norm"]))
    yield loss_of_next_tokens(subject, done[0], errors["loss"], slack * LOSS)
    yield from given(errors, DATA_TOO, CLIPPING, slack)


def compared(
    done: Sequence[Update], right: Sequence[Wanted], clip_norm: float
) -> Mapping[str, dict[str, float]]:
    """How far updates are from what they should be: relative errors by kind and by update."""
    errors: dict[str, dict[str, float]] = defaultdict(dict)
    for update, true in zip(done, right, strict=True):
        report, at = update.report, f"update {update.report.step}"
        errors["loss"][at] = abs(report.loss - true.loss) / max(1.0, abs(true.loss))
        errors["penalty"][at] = abs(report.penalty - true.penalty) / max(1.0, abs(true.penalty))
        errors["length"][at] = _relative(report.grad_norm, norm_of(true.gradients))
        arrived = {name: gradient for name, gradient in update.gradients.items() if gradient is not None}
        errors["clipping"][at] = _relative(norm_of(arrived), min(report.grad_norm, clip_norm))
        for name, wish in true.gradients.items():
            if bool(wish.any()):
                got = arrived.get(name)
                turned = math.inf if got is None else off(_unit(got), _unit(wish))
                errors["direction"][f"{name}, {at}"] = turned
    return errors


def _relative(found: float, right: float) -> float:
    return abs(found / right - 1) if right else math.inf


def _unit(gradient: Tensor) -> Tensor:
    return gradient.double() / max(float(gradient.double().norm()), 1e-300)


def given(
    errors: Mapping[str, Mapping[str, float]], part: Part, clipping: Part, slack: float = 1.0
) -> Iterator[Check]:
    """The gradient that the optimizers are given: its direction, its length, and what clipping leaves of
    it.
    """
    turned, _ = worst(errors["direction"])
    meaning = "opposite" if turned > 1.9 else "unrelated" if turned > 1 else "different"
    yield part("gradient equals the straight-through reference", f"the direction is {meaning}").below(
        errors["direction"], slack * DIRECTION, "distance of unit vectors"
    )
    other = "micro-batches are summed instead of averaged, or weighted otherwise than by their cases"
    yield part("gradient has the length of the mean's", other).below(errors["length"], slack * LENGTH)
    other = "what reaches the optimizers is shorter or longer than clipping leaves it"
    yield clipping("clipping to the norm that was set", other).below(errors["clipping"], LENGTH)


def loss_of_next_tokens(subject: Subject, update: Update, errors: Mapping[str, float], limit: float) -> Check:
    """The loss that the loop reports is the mean cross-entropy of the next token. Where it is that of other
    targets, the data is to blame.
    """
    shift = None if below(worst(errors)[0], limit) else shift_of(subject, update)
    meaning = f"the loss is taken of {shift}" if shift else "the loop optimises another loss"
    part = replace(BACKWARD, suspect="data") if shift else BACKWARD
    return part("training loss is the mean over scored next tokens", meaning).below(errors, limit, "nats")


@torch.no_grad()
def shift_of(subject: Subject, update: Update) -> str | None:
    """Other targets that the reported loss is the loss of: the present token, or the one after the next."""
    batches = update.report.batches
    others = {
        "the present token instead of the next": [(b.input_ids, b.input_ids, b.loss_mask) for b in batches],
        "the token after the next": [
            (b.input_ids[:, :-1], b.targets[:, 1:], b.loss_mask[:, 1:]) for b in batches
        ],
    }
    for words, shifted in others.items():
        scored = max(sum(int(mask.sum()) for _, _, mask in shifted), 1)
        total = sum(
            float(reference.summed_loss(reference.logits(update.before, subject.config, ids), targets, mask))
            for ids, targets, mask in shifted
        )
        if abs(total / scored - update.report.loss) < LOSS * max(1.0, abs(update.report.loss)):
            return words
    return None
