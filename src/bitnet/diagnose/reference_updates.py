"""The update once more: rates, clipping, AdamW and Muon in float64, from their definitions, to judge an
update by.

    rates     warm-up to the peak, then the schedule's line (design of the project; training tips of b1.58)
    clipping  g * min(1, c / |g|), |g| over all parameters               arXiv:1211.5063
    AdamW     w - lr * (m^ / (sqrt(v^) + 1e-8) + wd * w), decay on matrices only        arXiv:1711.05101
    Muon      w - lr * (sqrt(max(1, out / in)) * NS(Nesterov(g)) + wd * w)              K. Jordan, 2024

Shares nothing with bitnet.optim.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

ADAM_EPSILON = 1e-8
# Elements of a matrix up to which Muon's iteration runs in float64; above, float32 costs a tenth, errs 1e-5.
IN_DOUBLE = 65_536
COEFFICIENTS, ITERATIONS = (3.4445, -4.7750, 2.0315), 5  # Jordan's quintic


def rates(training: Mapping[str, Any], step: int) -> tuple[float, float]:
    """Learning rate and weight decay of update `step`, 1..N, from the settings as meta/config.json has
    them.
    """
    total, warmup, boundary = training["total_steps"], training["warmup_steps"], training["stage1_end"]
    peak, final = training["peak_lr"], training["final_lr"]
    decay = training["stage1_wd"] if step <= boundary else training["stage2_wd"]
    if step <= warmup:
        return peak * step / warmup, decay
    kind = training["schedule"]
    if kind == "cosine":
        turned = math.cos(math.pi * (step - warmup) / max(total - warmup, 1))
        return final + 0.5 * (peak - final) * (1 + turned), decay

    points = [(warmup, peak), (total, final)]
    if kind in ("two_stage", "warm_down"):
        middle = training["stage2_lr"] if kind == "two_stage" else peak
        points.insert(1, (boundary, middle))
        if boundary <= warmup:
            points = [(warmup, middle), (total, final)]
    for (x0, y0), (x1, y1) in pairwise(points):
        if step <= x1:
            return y0 + (y1 - y0) * (step - x0) / max(x1 - x0, 1), decay
    return final, decay


def norm_of(gradients: Mapping[str, Tensor]) -> float:
    """Global L2 norm."""
    return math.sqrt(sum(float((gradient.double() ** 2).sum()) for gradient in gradients.values()))


@dataclass
class Updater:
    """Both optimizers with their memory. muon_rows: logical matrices of each parameter that Muon moves, by
    name.
    """

    training: Mapping[str, Any]
    muon_rows: Mapping[str, Sequence[int]]
    count: int = 0
    first: dict[str, Tensor] = field(default_factory=dict)
    second: dict[str, Tensor] = field(default_factory=dict)

    def changes(
        self, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor], lr: float, wd: float
    ) -> dict[str, Tensor]:
        """What this update adds to each parameter."""
        self.count += 1
        return {
            name: self._muon(name, weight.double(), gradients[name].double(), lr, wd)
            if name in self.muon_rows
            else self._adamw(name, weight.double(), gradients[name].double(), lr, wd)
            for name, weight in weights.items()
        }

    def _adamw(self, name: str, weight: Tensor, gradient: Tensor, lr: float, wd: float) -> Tensor:
        beta1, beta2 = self.training["adam_beta1"], self.training["adam_beta2"]
        self.first[name] = beta1 * self.first.get(name, torch.zeros_like(gradient)) + (1 - beta1) * gradient
        squares = self.second.get(name, torch.zeros_like(gradient))
        self.second[name] = beta2 * squares + (1 - beta2) * gradient**2
        m, v = self.first[name] / (1 - beta1**self.count), self.second[name] / (1 - beta2**self.count)
        decay = wd * weight if weight.dim() > 1 else torch.zeros_like(weight)
        change: Tensor = -lr * (m / (torch.sqrt(v) + ADAM_EPSILON) + decay)
        return change

    def _muon(self, name: str, weight: Tensor, gradient: Tensor, lr: float, wd: float) -> Tensor:
        ratio, momentum = self.training["muon_lr"] / self.training["peak_lr"], self.training["muon_momentum"]
        past = self.first.get(name, torch.zeros_like(gradient))
        self.first[name] = momentum * past + (1 - momentum) * gradient
        ahead = (1 - momentum) * gradient + momentum * self.first[name]
        parts = [
            newton_schulz(part) * math.sqrt(max(1.0, part.shape[0] / part.shape[1]))
            for part in torch.split(ahead, list(self.muon_rows[name]))
        ]
        change: Tensor = -lr * ratio * torch.cat(parts) - lr * wd * weight
        return change


def newton_schulz(matrix: Tensor) -> Tensor:
    """The nearest orthogonal matrix, about: five steps of Jordan's quintic from matrix / |matrix|."""
    a, b, c = COEFFICIENTS
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = wide / max(float(torch.linalg.norm(wide)), 1e-7)
    x = x if x.numel() <= IN_DOUBLE else x.float()
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    x = x.double()
    return x.T if matrix.shape[0] > matrix.shape[1] else x
