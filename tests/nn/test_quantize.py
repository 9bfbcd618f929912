"""The two quantizers: by worked example, by property, and against NumPy in double precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bitnet.nn.quantize import EPSILON, Int8Rows, Ternary, quantize_activations, row_scales, ternarize
from bitnet.train.compiled import keep_processors_apart
from conftest import needs_compiler


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
def test_ternarizing_twice_keeps_the_codes_and_shrinks_the_scale_by_the_share_of_non_zeros(
    weight: Tensor,
) -> None:
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


FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def assert_int8_values(x: Tensor, made: Int8Rows) -> None:
    """Codes and steps against float64. x: (rows, in) in any format, whose values are taken as exact.

    The step has one rounding, 2^-24. The quotient x / step has three, and is at most 127: 127 * 3 * 2^-24 on
    the code's own scale is how far beyond half a unit the nearest integer may lie.
    """
    exact = x.double()
    step = exact.abs().amax(dim=-1, keepdim=True).clamp(min=EPSILON) / 127
    assert made.step.dtype == torch.float32
    assert bool(((made.step.double() - step).abs() <= 2**-23 * step).all())
    assert made.codes.dtype == torch.int8
    assert bool(((made.codes.double() - exact / step).abs() <= 0.5 + 127 * 4 * 2**-24).all())


def assert_ternary_values(weight: Tensor, made: Ternary) -> None:
    """Codes and scale against float64; the mean of n magnitudes has at most n roundings of 2^-24, the
    quotient one more.
    """
    exact = weight.double()
    scale = exact.abs().mean().clamp(min=EPSILON)
    rounding = (weight.numel() + 2) * 2**-24
    assert made.row_scale.dtype == torch.float32
    assert bool(((made.row_scale.double() - scale).abs() <= rounding * scale).all())
    off = (made.codes.double() - (exact / scale).clamp(-1, 1)).abs()
    assert bool((off <= 0.5 + rounding).all())


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", FORMATS)
@given(matrices())
def test_the_values_are_right_in_every_number_format(name: str, autocast: bool, x: Tensor) -> None:
    """In bf16 127.5 is no number: a largest input times its own 127 / largest came out as 128, which int8
    wraps to -128.
    """
    x = x.to(FORMATS[name])
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        int8, ternary = quantize_activations(x), ternarize(x)
    assert_int8_values(x, int8)
    assert_ternary_values(x, ternary)


@pytest.mark.parametrize("name", FORMATS)
def test_the_largest_input_of_a_token_keeps_its_sign(name: str) -> None:
    """Rows as wide as TinyStories' model: up to 18 of 100 lost their largest input to a wrapped code in
    bf16.
    """
    x = torch.randn(500, 256, generator=torch.Generator().manual_seed(5)).to(FORMATS[name])
    codes = quantize_activations(x).codes
    largest = x.abs().argmax(dim=-1, keepdim=True)
    assert torch.equal(codes.gather(1, largest).int(), 127 * x.gather(1, largest).sign().int())


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("name", FORMATS)
def test_the_values_are_right_when_compiled(name: str) -> None:
    """Inductor writes its own code for these passes, in the vector instructions of this processor."""
    keep_processors_apart()  # code for AVX-512 that is kept on disk is wrong where AVX2 is asked for
    x = (torch.randn(8, 48, generator=torch.Generator().manual_seed(6)) * 10).to(FORMATS[name])
    int8, ternary = torch.compile(lambda x: (quantize_activations(x), ternarize(x)))(x)
    assert_int8_values(x, Int8Rows(*int8))
    assert_ternary_values(x, Ternary(*ternary))


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
