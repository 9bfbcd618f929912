"""AdamW (arXiv:1711.05101): torch's function of that name, with its fused kernel where there is one.

Not torch.optim.AdamW itself, whose arithmetic a test compares this with: to make any torch.optim.Optimizer
imports torch's compiler, which is a second of processor time before every training (docs/log.md).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

EPSILON = 1e-8  # torch.optim.AdamW's


class ParameterGroups:
    """param_groups and state, as torch.optim.Optimizer has them."""

    def __init__(self, groups: Sequence[dict[str, Any]]) -> None:
        """groups: each with its parameters as `params`, and the settings that they share."""
        self.param_groups = list(groups)
        self.state: defaultdict[Tensor, dict[str, Tensor]] = defaultdict(dict)


class AdamW(ParameterGroups):
    """AdamW over groups with `params`. Rate `lr` and `weight_decay` are set before each step."""

    def __init__(self, groups: Sequence[dict[str, Any]], betas: tuple[float, float]) -> None:
        super().__init__([{"betas": betas, **group} for group in groups])

    @torch.no_grad()
    def step(self) -> None:
        """Apply one update to every parameter that has a gradient."""
        for group in self.param_groups:
            moving = [parameter for parameter in group["params"] if parameter.grad is not None]
            states = [self.state[parameter] or self._begin(parameter) for parameter in moving]
            adamw(
                moving,
                [parameter.grad for parameter in moving],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],  # of AMSGrad
                [state["step"] for state in states],
                fused=all(parameter.device.type in ("cpu", "cuda") for parameter in moving),
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=EPSILON,
                maximize=False,
            )

    def _begin(self, parameter: Tensor) -> dict[str, Tensor]:
        """Averages of nothing: the state before the first update."""
        self.state[parameter].update(
            step=torch.zeros((), device=parameter.device),
            exp_avg=torch.zeros_like(parameter),
            exp_avg_sq=torch.zeros_like(parameter),
        )
        return self.state[parameter]
