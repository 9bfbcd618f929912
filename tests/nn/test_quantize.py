"""The two quantizers: by worked example, by property, and against NumPy in double precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bitnet.nn.quantize import EPSILON, quantize_activations, row_scales, ternarize


@st.composite
def matrices(draw: st.DrawFn) -> Tensor:
    """A matrix of ordinary numbers of any magnitude."""
    rows, columns = draw(st.integers(1, 8)), draw(st.integers(1, 16))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    return torch.randn(rows, columns, generator=generator) * 10.0 ** draw(st.integers(-2, 3))


def test_ternary_by_worked_example() -> None:
    """The mean magnitude of 4, -2, 0.5, -1.5 is 2: below half of it, at 1 and less, a weight is 0."""
    codes, scale = ternarize(torch.tensor([[4.0, -2.0], [0.5, -1.5]]))
    assert codes.tolist() == [[1, -1], [0, -1]]
    assert codes.dtype == torch.int8
    assert scale.tolist() == [[2.0], [2.0]]


def test_int8_by_worked_example() -> None:
    """Each row has its own unit: the largest magnitude is code 127 or -127."""
    codes, step = quantize_activations(torch.tensor([[1.27, -0.10, 0.0], [-254.0, 100.0, 1.0]]))
    assert codes.tolist() == [[127, -10, 0], [-127, 50, 0]]
    assert step.flatten().tolist() == pytest.approx([0.01, 2.0])


@given(matrices())
def test_codes_are_ternary_and_the_scale_is_the_mean_magnitude(weight: Tensor) -> None:
    codes, scale = ternarize(weight)
    assert set(codes.unique().tolist()) <= {-1, 0, 1}
    expected = max(np.abs(weight.double().numpy()).mean(), EPSILON)
    np.testing.assert_allclose(scale.numpy(), expected, rtol=1e-5)


@given(matrices())
def test_ternarizing_twice_keeps_the_codes_and_shrinks_the_scale_by_the_share_of_non_zeros(weight: Tensor) -> None:
    """Why an exporter must carry the scale: computed again from dequantized weights it comes out smaller."""
    once = ternarize(weight)
    twice = ternarize(once.dequantized())
    share = (once.codes != 0).double().mean()
    torch.testing.assert_close(twice.row_scale.double(), once.row_scale.double() * share, rtol=1e-5, atol=0)
    assert torch.equal(twice.codes, once.codes)


@given(matrices())
def test_int8_codes_are_in_range_and_the_error_is_at_most_half_a_step(x: Tensor) -> None:
    codes, step = quantize_activations(x)
    assert int(codes.max()) <= 127
    assert int(codes.min()) >= -128
    error = (x.double() - codes.double() * step.double()).abs()
    assert bool((error <= step.double() * (0.5 + 1e-4)).all())


@given(matrices())
def test_int8_of_dequantized_values_is_the_same_again(x: Tensor) -> None:
    once = quantize_activations(x)
    assert torch.equal(quantize_activations(once.dequantized()).codes, once.codes)


@given(matrices())
def test_both_agree_with_a_double_precision_reference(x: Tensor) -> None:
    """A code may differ only where the quotient lies on a rounding boundary, and then by one."""
    values = x.double().numpy()
    scale = max(np.abs(values).mean(), EPSILON)
    step = np.maximum(np.abs(values).max(axis=1, keepdims=True), EPSILON) / 127
    for ours, quotient, low, high in (
        (ternarize(x).codes, values / scale, -1, 1),
        (quantize_activations(x).codes, values / step, -128, 127),
    ):
        apart = np.abs(ours.numpy() - np.clip(np.round(quotient), low, high))
        assert apart.max() <= 1
        on_boundary = np.abs(quotient - np.floor(quotient) - 0.5) < 1e-4
        assert bool((on_boundary | (apart == 0)).all())


def test_a_fused_weight_has_one_scale_per_logical_matrix() -> None:
    """Stacking q, k and v in one tensor changes no code and no scale."""
    parts = [torch.full((4, 8), 1.0), torch.randn(2, 8), torch.randn(2, 8) * 100]
    fused = ternarize(torch.cat(parts), (4, 2, 2))
    split = [ternarize(part) for part in parts]
    assert torch.equal(fused.codes, torch.cat([one.codes for one in split]))
    assert torch.equal(fused.row_scale, torch.cat([one.row_scale for one in split]))
    assert len(fused.row_scale.unique()) == 3


def test_zeros_stay_zeros() -> None:
    """The epsilon keeps an all-zero matrix or token from dividing by zero."""
    zeros = torch.zeros(3, 5)
    assert row_scales(zeros, (3,)).tolist() == pytest.approx(np.full((3, 1), EPSILON))
    assert not ternarize(zeros).codes.any()
    assert not quantize_activations(zeros).codes.any()


def test_quantizing_leaves_its_input_alone_and_outside_the_graph() -> None:
    x = torch.randn(3, 5, requires_grad=True)
    before = x.detach().clone()
    assert not ternarize(x).row_scale.requires_grad
    assert not quantize_activations(x).step.requires_grad
    assert torch.equal(x, before)
