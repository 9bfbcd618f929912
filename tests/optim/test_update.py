"""A broken gradient is noticed before anything changes."""

from __future__ import annotations

import math

import pytest
import torch

from bitnet.nn.transformer import BitNetTransformer
from bitnet.optim.optimizer import OptimizerConfig, Optimizers
from bitnet.optim.schedule import Rates
from bitnet.optim.update import apply_update

ADAMW = OptimizerConfig(kind="adamw", adam_beta1=0.9, adam_beta2=0.95, muon_momentum=0.95, muon_lr_ratio=1.0)


@pytest.mark.parametrize(
    ("loss", "gradient", "reason"),
    [
        (math.nan, 1.0, "nan_inf_loss"),
        (math.inf, 1.0, "nan_inf_loss"),
        (1.0, math.nan, "nan_inf_grad"),
        (1.0, math.inf, "nan_inf_grad"),
    ],
)
def test_refused_update_changes_neither_weights_nor_state(
    loss: float, gradient: float, reason: str, tiny_model: BitNetTransformer
) -> None:
    optimizers = Optimizers(tiny_model, ADAMW)
    before = [parameter.detach().clone() for parameter in tiny_model.parameters()]
    for parameter in tiny_model.parameters():
        parameter.grad = torch.full_like(parameter, gradient)
    outcome = apply_update(tiny_model, optimizers, Rates(0.1, 0.1), loss=loss, clip_norm=1.0)
    assert outcome.refused == reason
    assert all(torch.equal(a, b) for a, b in zip(before, tiny_model.parameters(), strict=True))
    assert optimizers.state_tensors() == {}
    assert all(parameter.grad is None for parameter in tiny_model.parameters())


def test_gradients_are_clipped_to_the_norm_and_the_norm_before_is_reported(
    tiny_model: BitNetTransformer,
) -> None:
    optimizers = Optimizers(tiny_model, ADAMW)
    seen: list[float] = []
    optimizers.step = lambda rates: seen.append(  # type: ignore[method-assign]
        float(
            torch.linalg.vector_norm(
                torch.stack([p.grad.norm() for p in tiny_model.parameters() if p.grad is not None])
            )
        )
    )
    for parameter in tiny_model.parameters():
        parameter.grad = torch.ones_like(parameter)
    count = sum(parameter.numel() for parameter in tiny_model.parameters())
    outcome = apply_update(tiny_model, optimizers, Rates(0.1, 0.1), loss=1.0, clip_norm=0.5)
    assert outcome.grad_norm == pytest.approx(math.sqrt(count), rel=1e-4)
    assert seen == [pytest.approx(0.5, rel=1e-3)]
