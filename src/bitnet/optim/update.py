"""The end of an update, after all gradients were gathered: clip them, check them, step the optimizers.

A loss or gradient that is not finite is noticed before anything is changed: the update is refused, and
weights and optimizer state stay as they were.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import nn

from bitnet.optim.loss_scale import LossScale
from bitnet.optim.optimizer import Optimizers
from bitnet.optim.schedule import Rates

LOSS_SCALE_OVERFLOW = "loss_scale_overflow"
"""The reason of a refused update that only makes the loss scale of fp16 smaller, and is no sign of trouble.
"""


class UpdateOutcome(NamedTuple):
    """grad_norm: global L2 norm before clipping; refused: why the update did not happen, or None."""

    grad_norm: float
    refused: str | None


def apply_update(
    model: nn.Module,
    optimizers: Optimizers,
    rates: Rates,
    *,
    loss: float,
    clip_norm: float,
    scaling: LossScale | None = None,
) -> UpdateOutcome:
    """Clip the gathered gradients to `clip_norm` and step, unless the loss or the norm is not finite.

    scaling: what the loss was multiplied by before the backward pass; None where it was not.
    """
    if not math.isfinite(loss):
        optimizers.zero_grad()
        return UpdateOutcome(math.nan, "nan_inf_loss")

    # The norm, and what it is clipped to, are those of the true gradient.
    if scaling is not None:
        scaling.unscale(optimizers)
    norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm))
    if not math.isfinite(norm):
        optimizers.zero_grad()
        may_help = scaling is not None and scaling.move()
        return UpdateOutcome(norm, LOSS_SCALE_OVERFLOW if may_help else "nan_inf_grad")

    optimizers.step(rates)
    if scaling is not None:
        scaling.move()
    return UpdateOutcome(norm, None)
