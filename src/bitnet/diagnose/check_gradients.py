"""What the loop hands to the optimizers, against the straight-through gradient of an independent float64
model. Suspect: gradients.

The loop makes two real updates of two micro-batches each, on narrow rows. Its reported loss must be the mean
cross-entropy over the scored tokens of both micro-batches, and the gradient that reaches the optimizers must
be the gradient of that mean, clipped. A gradient that points elsewhere is a fault of the backward pass; one
that only has the wrong length is a fault of scaling (a mean that is none) or of clipping.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from bitnet.data.stream import Batch, RowSource
from bitnet.diagnose import reference, reference_updates
from bitnet.diagnose.finding import STRONG, Check, Part, Suspect, below, worst
from bitnet.diagnose.subject import Subject, Update, copy_of, watch
from bitnet.diagnose.trace import off

COLUMNS, ROWS, MICRO = 48, 2, 2
DIRECTION, LENGTH, LOSS = 0.05, 0.02, 2e-3
"""Allowed: relative distance of directions (values on the edge of an int8 code add up through the layers;
healthy models measured below 0.01), relative error of the norm, and of the loss in nats. With bf16 products
four times as much."""
FORWARD: frozenset[Suspect] = frozenset({"quantization"})
GRADIENTS = Part("gradients", "the loop itself", explained_by=FORWARD | {"data"})
OPTIMIZER = Part("optimizer", "arXiv:1211.5063; train.grad_clip_norm", weight=STRONG)


def first_updates(subject: Subject, source: RowSource) -> list[Update]:
    """Two real updates from the weights under examination, on narrow rows."""
    sizes = {
        "batch_size": ROWS,
        "grad_accumulation_steps": MICRO,
        "seq_len": min(COLUMNS, int(subject.training["seq_len"])),
    }
    return watch(subject, copy_of(subject, subject.model), source, 2, **sizes)


def gradients(subject: Subject, updates: Sequence[Update]) -> Iterator[Check]:
    """All checks of this file, on the updates made."""
    slack = 4.0 if subject.bf16 else 1.0
    done = [update for update in updates if update.report is not None and update.rates is not None]
    yield GRADIENTS(
        "updates are made",
        "the optimizers were not asked to move: "
        f"{[u.report.refused for u in updates if u.report is not None]}",
    ).holds(len(done) == 2, len(done), "2 of 2")
    if not done:
        return
    yield reaches(done[0])
    right = [expected(subject, update) for update in done]
    yield from losses(done, right, slack, subject)
    yield from directions(done, right, slack)
    yield from lengths(done, right, slack, float(subject.training["grad_clip_norm"]))


def expected(subject: Subject, update: Update) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradient that this update should have had, from the weights before it and the batches that the
    loop reports.
    """
    assert update.report is not None
    batches = [(batch.input_ids, batch.targets, batch.loss_mask) for batch in update.report.batches]
    return reference.loss_and_gradients(update.before, subject.config, batches)


def reaches(update: Update) -> Check:
    """Every parameter has a gradient, and one that is not zero."""
    without = [
        name for name, gradient in update.gradients.items() if gradient is None or not bool(gradient.any())
    ]
    return GRADIENTS(
        "gradient reaches every parameter",
        "no gradient",
        source="every parameter is used in every forward pass",
        explained_by=FORWARD,
    ).none(without, "parameters without gradient")


def losses(
    updates: Sequence[Update],
    right: Sequence[tuple[float, dict[str, Tensor]]],
    slack: float,
    subject: Subject,
) -> Iterator[Check]:
    """The loss that the loop reports is the mean cross-entropy of the next token."""
    reported = [update.report.loss for update in updates if update.report is not None]
    true = [loss for loss, _ in right]
    gap = max(abs(mine - other) for mine, other in zip(reported, true, strict=True))
    ok = below(gap, slack * LOSS * max(1.0, *true))
    shift = None if ok else _explained_by_shift(updates[0], subject, reported[0])
    yield GRADIENTS(
        "training loss is the mean over scored next tokens",
        f"the loss is taken of {shift}" if shift else "the loop optimises another loss",
        suspect="data" if shift else "gradients",
        source="independent float64 computation on the batches that the loop reports",
        explained_by=FORWARD,
    ).holds(ok, [round(x, 5) for x in reported], f"{[round(x, 5) for x in true]} nats/token")


def _explained_by_shift(update: Update, subject: Subject, reported: float) -> str | None:
    """Whether the reported loss is that of other targets: the present token, or the one after the next."""
    assert update.report is not None
    others = {
        "the present token instead of the next": _shifted(update.report.batches, 0),
        "the token after the next": _shifted(update.report.batches, 2),
    }
    with torch.no_grad():
        for words, batches in others.items():
            scored = max(sum(int(mask.sum()) for _, _, mask in batches), 1)
            parts = [
                reference.summed_loss(reference.logits(update.before, subject.config, ids), targets, mask)
                for ids, targets, mask in batches
            ]
            if abs(float(sum(parts)) / scored - reported) < LOSS * max(1.0, abs(reported)):
                return words
    return None


def _shifted(batches: Sequence[Batch], by: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    if by == 0:
        return [(b.input_ids, b.input_ids, b.loss_mask) for b in batches]
    return [(b.input_ids[:, :-1], b.targets[:, 1:], b.loss_mask[:, 1:]) for b in batches]


def directions(
    updates: Sequence[Update], right: Sequence[tuple[float, dict[str, Tensor]]], slack: float
) -> Iterator[Check]:
    """Each parameter's gradient points where the straight-through gradient does."""
    errors: dict[str, float] = {}
    for number, (update, (_, wanted)) in enumerate(zip(updates, right, strict=True), start=1):
        for name, gradient in update.gradients.items():
            true = wanted.get(name)
            if true is None or gradient is None or not bool(true.any()):
                continue
            errors[f"{name}, update {number}"] = off(
                gradient.double() / max(float(gradient.double().norm()), 1e-300), true / true.norm()
            )
    error, where = worst(errors)
    meaning = "opposite" if error > 1.9 else "unrelated" if error > 1 else "different"
    yield GRADIENTS(
        "gradient equals the straight-through reference",
        f"{where}: the direction is {meaning}",
        source="arXiv:1308.3432; independent float64 backward pass",
    ).below(error, slack * DIRECTION, "distance of unit vectors")


def lengths(
    updates: Sequence[Update], right: Sequence[tuple[float, dict[str, Tensor]]], slack: float, limit: float
) -> Iterator[Check]:
    """The norm before clipping is that of the mean's gradient; after clipping it is at most the limit, and
    not less than it should be.
    """
    true = [reference_updates.norm_of(wanted) for _, wanted in right]
    reported = [update.report.grad_norm for update in updates if update.report is not None]
    error = max(
        abs(mine / other - 1) if other else math.inf for mine, other in zip(reported, true, strict=True)
    )
    yield GRADIENTS(
        "gradient has the length of the mean's",
        f"off by a factor of {reported[0] / true[0] if true[0] else math.nan:.3g}: micro-batches summed "
        "instead of averaged, or scaled",
        source="one mean over all scored tokens of an update, however they are split",
    ).holds(
        below(error, slack * LENGTH),
        [round(x, 6) for x in reported],
        f"{[round(x, 6) for x in true]} before clipping",
    )
    clipped = [
        reference_updates.norm_of({k: g for k, g in update.gradients.items() if g is not None})
        for update in updates
    ]
    wanted = [min(norm, limit) for norm in reported]
    error = max(
        abs(mine / other - 1) if other else math.inf for mine, other in zip(clipped, wanted, strict=True)
    )
    yield OPTIMIZER(
        "clipping to the norm that was set",
        "what reaches the optimizers is shorter or longer than clipping leaves it",
    ).holds(
        below(error, LENGTH),
        [round(x, 8) for x in clipped],
        f"{[round(x, 6) for x in wanted]}: min(norm, {limit:g})",
    )
