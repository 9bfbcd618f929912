"""The packed product: its int8 input gradient within a bound, rows that are not finite, and compiled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bitnet.nn.bitlinear import BitLinear
from bitnet.nn.packed_linear import FAST_PATHS, has_bf16_units, has_fast_packed
from bitnet.nn.quantize import quantize_activations, ternarize
from conftest import needs_compiler

KINDS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def layer(input_gradient: Any = "int8", kind: torch.dtype = torch.float32) -> BitLinear:
    made = BitLinear(72, (40, 24))
    torch.nn.init.normal_(made.weight, std=0.02, generator=torch.Generator().manual_seed(1))
    made.product, made.input_gradient, made.gradient_dtype = "packed", input_gradient, kind
    return made


def gradients(made: BitLinear, x: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """y, dL/dx and dL/dW for L = sum(y * upstream)."""
    x = x.clone().requires_grad_()
    made.weight.grad = None
    y = made(x)
    (y * upstream).sum().backward()
    assert x.grad is not None
    assert made.weight.grad is not None
    return y.detach(), x.grad, made.weight.grad


def rows_of_every_size(count: int, width: int, seed: int) -> Tensor:
    """Numbers with a few outliers; the rows from 1e-12, as in a mean over many tokens, to 1e6."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, width, generator=generator) ** 3
    return x * torch.logspace(-12, 6, count)[:, None]


@pytest.mark.parametrize("gradient_dtype", KINDS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_int8_input_gradient_is_within_the_bound_of_int8_rows(kind: str, gradient_dtype: str) -> None:
    """Half a step for each code that is not zero: the module's bound, for every element, and the rounding of
    the result. Rows far below the quantizer's epsilon of 1e-5 keep all their digits.
    """
    made = layer(kind=KINDS[gradient_dtype])
    upstream = rows_of_every_size(48, 64, 2).to(KINDS[kind])
    x = torch.randn(48, 72, generator=torch.Generator().manual_seed(3)).to(KINDS[kind])
    _, found, _ = gradients(made, x, upstream)

    ternary = ternarize(made.weight, made.rows)
    rows = upstream.double() * ternary.row_scale.double().T  # (N, out)
    codes = ternary.codes.double()
    right = rows @ codes
    bound = rows.abs().amax(dim=1, keepdim=True) / 254 * codes.abs().sum(dim=0)
    last = torch.finfo(KINDS[kind]).eps * right.abs() + 1e-6 * rows.abs().sum(dim=1, keepdim=True)
    assert bool(((found.double() - right).abs() <= bound + last).all())
    off = torch.linalg.vector_norm(found.double() - right, dim=1) / torch.linalg.vector_norm(right, dim=1)
    assert float(off.max()) < 0.06
    assert float(off.median()) < 0.03


@pytest.mark.parametrize("gradient_dtype", KINDS)
def test_only_the_input_gradient_depends_on_how_it_is_computed(gradient_dtype: str) -> None:
    x, upstream = torch.randn(9, 72), torch.randn(9, 64)
    ours, other = (gradients(layer(how, KINDS[gradient_dtype]), x, upstream) for how in ("int8", "float"))
    assert torch.equal(ours[0], other[0])
    unit = 2**-8 if gradient_dtype == "bf16" else 2**-22  # the row of dL/dW is rounded once or twice
    torch.testing.assert_close(ours[2], other[2], rtol=0, atol=48 * unit)
    assert not torch.equal(ours[1], other[1])
    torch.testing.assert_close(ours[1], other[1], rtol=0.05, atol=0.01)


def test_the_weight_gradient_in_bf16_has_exact_codes() -> None:
    """What is rounded is the gradient's row: with one row of gradient 1 and step 2^-7 nothing is."""
    made = layer(kind=torch.bfloat16)
    x = torch.arange(72.0).sub(36)[None] / 36 * 127 / 128
    x[0, 0] = -127 / 128  # the step is 2^-7
    _, _, grad_weight = gradients(made, x, torch.ones(1, 64))
    assert torch.equal(grad_weight[0], torch.round(x[0] * 128) / 128)


@pytest.mark.parametrize("way", ["c", "torch"])
@pytest.mark.parametrize("input_gradient", ["int8", "float"])
def test_bf16_weight_gradients_are_within_the_bound_of_bf16_rows(
    monkeypatch: pytest.MonkeyPatch, input_gradient: str, way: str
) -> None:
    """2^-8 of every number that is summed, 2^-8 of the sum, and the rounding of 48 sums in float32. All else
    has the bits that it has with float32 weight gradients.
    """
    if way == "torch":
        monkeypatch.setenv("BITNET_KERNEL", "torch")
    x, upstream = rows_of_every_size(48, 72, 3), rows_of_every_size(48, 64, 2).flip(0)
    y, grad_x, plain = gradients(layer(input_gradient), x, upstream)
    made = layer(input_gradient)
    made.weight_dtype = torch.bfloat16
    ours = gradients(made, x, upstream)
    assert torch.equal(ours[0], y)
    assert torch.equal(ours[1], grad_x)
    assert ours[2].dtype == torch.float32

    codes, step = quantize_activations(x)
    rows = upstream.double() * step.double()
    right, sizes = rows.T @ codes.double(), rows.abs().T @ codes.double().abs()
    error = (ours[2].double() - right).abs()
    assert bool((error <= 2**-8 * (sizes + right.abs()) + 48 * 2**-24 * sizes).all())
    assert bool(((plain.double() - right).abs() <= 50 * 2**-24 * sizes).all())
    assert float(error.norm() / right.norm()) > 2**-12, "it is float32"


@pytest.mark.parametrize("input_gradient", ["int8", "float"])
@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf"), float("-inf"), 1e30])
def test_rows_of_zeros_and_rows_that_are_not_finite(value: float, input_gradient: str) -> None:
    """Zeros give zeros. Anything else is seen: this row of dL/dx and dL/dW are not finite, so that the update
    is refused; the other rows of dL/dx are untouched.
    """
    made = layer(input_gradient)
    x, upstream = torch.randn(6, 72), torch.randn(6, 64)
    _, right, _ = gradients(made, x, upstream)
    upstream[2] = value
    _, grad_x, grad_weight = gradients(made, x, upstream)
    others = [0, 1, 3, 4, 5]
    assert torch.equal(grad_x[others], right[others])
    if value == 0:
        assert not grad_x[2].any()
        assert bool(grad_weight.isfinite().all())
    elif value == 1e30:  # beyond the rows that int8 gradients can have: refused, while floats go on
        assert bool(grad_x[2].isnan().all()) == (input_gradient == "int8")
    else:
        assert not grad_x[2].isfinite().any()
        assert not grad_weight.isfinite().any()


def test_rows_of_up_to_1e26_are_multiplied() -> None:
    """They were multiplied by 2^40 twice for a while, so that everything above 1e14 was refused."""
    made = layer("int8")
    x, upstream = torch.randn(6, 72), torch.randn(6, 64)
    _, right, _ = gradients(made, x, upstream)
    _, grad_x, _ = gradients(made, x, upstream * 2.0**80)
    assert torch.equal(grad_x, right * 2.0**80)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_input_that_is_not_finite_makes_its_own_row_not_a_number(value: float) -> None:
    made, x = layer(), torch.randn(4, 72)
    right = made(x)
    x[1, 5] = value
    y = made(x)
    assert bool(y[1].isnan().all())
    assert torch.equal(y[[0, 2, 3]], right[[0, 2, 3]])


@pytest.mark.parametrize("gradient_dtype", KINDS)
@pytest.mark.parametrize("input_gradient", ["int8", "float"])
def test_torch_computes_the_same_where_nothing_is_compiled(
    monkeypatch: pytest.MonkeyPatch, input_gradient: str, gradient_dtype: str
) -> None:
    x, upstream = torch.randn(20, 72), torch.randn(20, 64) * 1e-7
    ours = gradients(layer(input_gradient, KINDS[gradient_dtype]), x, upstream)
    monkeypatch.setenv("BITNET_KERNEL", "torch")
    plain = gradients(layer(input_gradient, KINDS[gradient_dtype]), x, upstream)
    for one, other in zip(ours, plain, strict=True):
        assert torch.equal(one, other)


def test_the_row_scale_is_applied_before_rows_are_quantized() -> None:
    """Logical matrices whose scales differ by a thousand; after the product it would be too late."""
    made = BitLinear(16, (8, 8))
    with torch.no_grad():
        made.weight.copy_(torch.randn(16, 16))
        made.weight[8:] *= 1000
    made.product, made.input_gradient = "packed", "int8"
    upstream = torch.randn(5, 16)
    _, found, _ = gradients(made, torch.randn(5, 16), upstream)
    right = upstream @ ternarize(made.weight, made.rows).dequantized()
    assert float((found - right).norm() / right.norm()) < 0.02


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("input_gradient", ["int8", "float"])
def test_compiled_it_is_one_graph_and_equal(input_gradient: str) -> None:
    made, x, upstream = layer(input_gradient), torch.randn(12, 72), torch.randn(12, 64)
    plain = gradients(made, x, upstream)
    compiled = torch.compile(made, fullgraph=True)
    x = x.clone().requires_grad_()
    made.weight.grad = None
    y = compiled(x)
    (y * upstream).sum().backward()
    for one, other in zip((y, x.grad, made.weight.grad), plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_it_is_fast_on_cpus_with_vectorised_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitnet.kernels.library.path", lambda: FAST_PATHS[0])
    assert has_fast_packed(torch.device("cpu"))
    assert not has_fast_packed(torch.device("cuda"))
    for slow in ("scalar", "torch"):
        monkeypatch.setattr("bitnet.kernels.library.path", lambda slow=slow: slow)
        assert not has_fast_packed(torch.device("cpu"))


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"avx512_bf16": True, "avx2": True}, True),
        ({"amx_bf16": True}, True),
        ({"neon": True, "bf16": True}, True),
        ({"avx512_bf16": False, "amx_bf16": False, "avx512_vnni": True}, False),
        ({"neon": True, "bf16": False}, False),
    ],
)
def test_bf16_units_are_those_of_x86_and_arm(
    monkeypatch: pytest.MonkeyPatch, found: dict[str, bool], expected: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    assert has_bf16_units(torch.device("cpu")) == expected
    assert not has_bf16_units(torch.device("meta"))
