"""The norm with its own backward pass against torch's, in every number format that it runs in."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bitnet.nn.rms_norm import RMSNorm

EPS = 1e-6


def norm(width: int) -> RMSNorm:
    made = RMSNorm(width, EPS)
    with torch.no_grad():
        made.weight.copy_(torch.rand(width, generator=torch.Generator().manual_seed(1)) + 0.5)
    return made


def values(*shape: int, size: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2)) * size


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("shape", [(3, 8), (2, 5, 48), (1, 2)])
def test_values_and_gradients_are_torchs(shape: tuple[int, ...], size: float) -> None:
    made, upstream = norm(shape[-1]), values(*shape)
    mine, theirs = (values(*shape, size=size).requires_grad_() for _ in range(2))
    weight = made.weight.detach().clone().requires_grad_()

    ours = made(mine)
    reference = F.rms_norm(theirs, (shape[-1],), weight, EPS)
    torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-6)

    ours.backward(upstream)
    reference.backward(upstream)
    assert mine.grad is not None
    assert theirs.grad is not None
    scale = float(theirs.grad.abs().max())
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-5 * scale)
    torch.testing.assert_close(made.weight.grad, weight.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_formats_are_rounded_once_at_the_end(dtype: torch.dtype) -> None:
    """Values, not only dtypes: computed in float32, whatever comes in."""
    made, x = norm(48), values(4, 48, size=30).to(dtype)
    y = made(x)
    assert y.dtype == dtype
    assert torch.equal(y, made(x.float()).to(dtype))


def test_a_row_of_zeros_stays_zero() -> None:
    assert torch.equal(norm(8)(torch.zeros(2, 8)), torch.zeros(2, 8))
