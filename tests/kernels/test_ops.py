"""On torch tensors the C kernels, the torch fallback and the quantizers of bitnet.nn give the same
numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bitnet.errors import DataError
from bitnet.kernels import library, ops
from bitnet.kernels.ops import PackedWeight, QuantizedRows
from bitnet.nn.bitlinear import BitLinear
from bitnet.nn.quantize import quantize_activations, ternarize
from bitnet.nn.rms_norm import RMSNorm

pytest_plugins = ["kernel_paths"]  # fixtures: path, use, empty_cache

DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(params=["c", "torch"])
def way(request: pytest.FixtureRequest, use: Callable[[Any, str], None]) -> Iterator[str]:
    """The C kernels, or torch."""
    use(None, "torch" if request.param == "torch" else "")
    if request.param == "c" and library.path() == "torch":
        pytest.skip(library.describe())
    return request.param


def random_codes(out: int, width: int, seed: int = 0) -> Tensor:
    return torch.randint(-1, 2, (out, width), dtype=torch.int8, generator=torch.Generator().manual_seed(seed))


def random_rows(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@given(st.integers(1, 60), st.integers(1, 90), st.integers(0, 30), st.integers(0, 99))
def test_sums_are_exact(way: str, out: int, width: int, rows: int, seed: int) -> None:
    weight = random_codes(out, width, seed)
    codes = torch.randint(
        -128, 128, (rows, width), dtype=torch.int8, generator=torch.Generator().manual_seed(seed)
    )
    expected = (codes.long() @ weight.long().t()).int()
    assert torch.equal(ops.sums(ops.pack(weight), codes), expected)
    assert torch.equal(ops.sums(ops.pack(weight.t().contiguous(), transposed=True), codes), expected)
    assert torch.equal(ops.unpack(ops.pack(weight)), weight)


def test_rows_one_wide_have_the_right_sums(way: str) -> None:
    """torch._int_mm on a CPU gave memory that it had never written."""
    weight, codes = (
        torch.tensor([[1], [-1], [0]], dtype=torch.int8),
        torch.tensor([[44], [-128]], dtype=torch.int8),
    )
    for _ in range(20):  # which may hold the right sums by chance
        assert ops.sums(ops.pack(weight), codes).tolist() == [[44, -44, 0], [-128, 128, 0]]


def test_without_vnni_torch_adds_in_floats_as_exactly(
    use: Callable[[Any, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    use(None, "torch")
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    for width in (ops.EXACT_FLOAT_INPUTS, 2 * ops.EXACT_FLOAT_INPUTS):
        codes = torch.full((2, width), -128, dtype=torch.int8)
        codes[1, 0] = 1  # the last bit counts
        packed = ops.pack(torch.ones(1, width, dtype=torch.int8))
        assert ops.sums(packed, codes).tolist() == [[-128 * width], [-128 * width + 129]]


def test_a_matrix_packed_on_one_path_multiplies_on_the_other(use: Callable[[Any, str], None]) -> None:
    weight, x = random_codes(37, 50), ops.quantize_rows(random_rows(4, 50))
    use(None, "")
    packed = ops.pack(weight)
    here = ops.product(packed, x)
    use(None, "torch")
    plain = ops.pack(weight)
    assert torch.equal(ops.product(packed, x), here)
    use(None, "")
    assert torch.equal(ops.product(plain, x), here)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16, torch.float64])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e4])
def test_rows_are_quantised_as_in_nn(way: str, dtype: torch.dtype, size: float) -> None:
    x = (random_rows(3, 7, 250) * size).to(dtype)
    x[0, 0, :8] = torch.tensor(
        [0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 127.0, -127.0]
    )  # halves, where the step is 1
    ours, theirs = ops.quantize_rows(x), quantize_activations(x)
    assert torch.equal(ours.codes, theirs.codes)
    assert torch.equal(ours.step, theirs.step)
    assert ours.step.dtype == torch.float32


def test_the_scale_is_torchs_reciprocal(way: str) -> None:
    """127.0 / tensor is reciprocal() * 127 in torch. Dividing instead gave another code for one in some
    thousand bfloat16 values.
    """
    x = (random_rows(500, 250, seed=2) * 1e4).to(torch.bfloat16)
    assert torch.equal(ops.quantize_rows(x).codes, quantize_activations(x).codes)


@pytest.mark.parametrize("dtype", DTYPES)
def test_columns_multiply_before_quantising(way: str, dtype: torch.dtype) -> None:
    x, columns = random_rows(5, 100, dtype=dtype), random_rows(100, seed=1)
    ours, theirs = ops.quantize_rows(x, columns), quantize_activations(x.float() * columns)
    assert torch.equal(ours.codes, theirs.codes)
    assert torch.equal(ours.step, theirs.step)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_fused_norm_is_the_norm_of_nn_and_then_the_quantizer(way: str, dtype: torch.dtype) -> None:
    """torch adds the squares in another order, so 1 / rms differs in its last bits, and a code where a value
    is almost half-way.
    """
    norm = RMSNorm(768, 1e-6)
    with torch.no_grad():
        norm.weight.copy_(random_rows(768, seed=1).abs() + 0.1)
    x = random_rows(2, 9, 768, dtype=dtype)
    ours, theirs = ops.quantize_normed_rows(x, norm.weight, norm.eps), quantize_activations(norm(x))
    assert (ours.codes.int() - theirs.codes.int()).abs().max() <= 1
    assert (ours.codes != theirs.codes).float().mean() < 1e-3
    torch.testing.assert_close(ours.step, theirs.step, rtol=1e-6 if dtype == torch.float32 else 1e-2, atol=0)
    torch.testing.assert_close(ours.inverse_rms, (x.float().square().mean(-1, keepdim=True) + 1e-6).rsqrt())


def test_a_bitlinear_layer_is_one_product_bit_for_bit(way: str) -> None:
    """Forward as BitLinear computes it from integers, with a scale per logical matrix."""
    torch.manual_seed(0)
    layer = BitLinear(48, (32, 16, 24))
    torch.nn.init.normal_(layer.weight)
    layer.product = "int8"
    x = random_rows(2, 5, 48)
    ternary = ternarize(layer.weight, layer.rows)
    y = ops.product(ops.pack(ternary.codes), ops.quantize_rows(x), ternary.row_scale)
    assert torch.equal(y, layer(x))


def test_the_input_gradient_with_integers_is_near_the_exact_one(way: str) -> None:
    """dL/dx = dL/dy @ (C * s), by the transposed matrix, with the scales inside the rows: int8 keeps seven
    bits of each.
    """
    torch.manual_seed(0)
    ternary = ternarize(torch.randn(96, 64), (32, 64))
    grad = random_rows(20, 96)
    packed = ops.pack(ternary.codes, transposed=True)
    assert packed[1:] == (64, 96)
    ours = ops.product(packed, ops.quantize_rows(grad, ternary.row_scale))
    exact = grad @ ternary.dequantized()
    assert (ours - exact).norm() / exact.norm() < 0.01


def test_codes_other_than_ternary_are_refused(way: str) -> None:
    with pytest.raises(DataError, match="other than -1, 0 and 1"):
        ops.pack(torch.full((4, 4), 2, dtype=torch.int8))


def test_wrong_shapes_are_errors(way: str) -> None:
    packed, x = ops.pack(random_codes(20, 32)), ops.quantize_rows(random_rows(3, 32))
    wrong: list[Callable[[], object]] = [
        lambda: ops.sums(packed, x.codes[:, :31]),
        lambda: ops.sums(packed._replace(out_features=500), x.codes),
        lambda: ops.sums(packed._replace(in_features=48), torch.zeros(3, 48, dtype=torch.int8)),
        lambda: ops.product(packed, QuantizedRows(x.codes, x.step[:2])),
        lambda: ops.product(packed, x, torch.ones(19)),
        lambda: ops.quantize_rows(random_rows(3, 32), torch.ones(31)),
        lambda: ops.pack(torch.ones(2, 2)[:, :0].to(torch.int8)),
    ]
    for call in wrong:
        with pytest.raises((ValueError, RuntimeError)):
            call()


def test_rows_that_are_views_and_need_gradients_are_taken(way: str) -> None:
    packed = ops.pack(random_codes(16, 32))
    x = random_rows(4, 64).requires_grad_()
    part = x[:, ::2]
    assert torch.equal(
        ops.product(packed, ops.quantize_rows(part)),
        ops.product(packed, ops.quantize_rows(part.detach().clone())),
    )
    assert ops.sums(packed, torch.zeros(2, 0, 32, dtype=torch.int8)).shape == (2, 0, 16)


@pytest.mark.slow
def test_compiled_code_gives_the_same_numbers(way: str) -> None:
    """fullgraph: nothing falls back to Python; the operations know their shapes."""
    weight, scale, x, norm = (
        random_codes(48, 32),
        random_rows(48, 1).abs(),
        random_rows(2, 5, 32),
        torch.ones(32),
    )

    def layer(x: Tensor, codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        packed = ops.pack(codes)
        plain = ops.product(packed, ops.quantize_rows(x * 2), scale) + 1
        normed = ops.product(packed, ops.quantize_normed_rows(x, norm, 1e-5))
        return plain, normed, ops.sums(packed, ops.quantize_rows(x).codes)

    torch._dynamo.reset()
    for ours, theirs in zip(
        torch.compile(layer, backend="aot_eager", fullgraph=True)(x, weight), layer(x, weight), strict=True
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.slow
def test_the_operations_are_registered_rightly(way: str) -> None:
    """torch's own check: schema, fake kernels, and their agreement with the real ones."""
    packed, x = ops.pack(random_codes(20, 32)), random_rows(3, 32)
    rows = ops.quantize_rows(x)
    checks: list[tuple[Any, tuple[Any, ...]]] = [
        (torch.ops.bitnet.pack.default, (random_codes(20, 32), True)),
        (torch.ops.bitnet.quantize_rows.default, (x, None)),
        (torch.ops.bitnet.quantize_rows.default, (x, torch.ones(32))),
        (torch.ops.bitnet.quantize_normed_rows.default, (x, torch.ones(32), 1e-5)),
        (torch.ops.bitnet.ternary_sums.default, (*packed, rows.codes)),
        (torch.ops.bitnet.ternary_product.default, (*packed, rows.codes, rows.step.view(-1), torch.ones(20))),
    ]
    for operation, arguments in checks:
        torch.library.opcheck(operation, arguments, test_utils=("test_schema", "test_faketensor"))


def test_packed_weights_survive_a_copy(way: str) -> None:
    packed = ops.pack(random_codes(20, 32))
    other = copy.deepcopy(packed)
    assert isinstance(other, PackedWeight)
    assert torch.equal(ops.unpack(other), ops.unpack(packed))
