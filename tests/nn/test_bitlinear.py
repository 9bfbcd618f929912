"""The ternary layer: its gradient, its two products against each other, and codes that are never stale."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bitnet.kernels import ops
from bitnet.nn.bitlinear import BitLinear, Product
from bitnet.nn.config import BitNetConfig
from bitnet.nn.quantize import quantize_activations, ternarize
from bitnet.nn.transformer import BitNetTransformer
from bitnet.optim.optimizer import OptimizerConfig, OptimizerKind, Optimizers
from bitnet.optim.schedule import Rates
from bitnet.run.checkpoint import Checkpoint, load_weights


def layer(product: Product = "float", rows: tuple[int, ...] = (16, 8, 8), **options: object) -> BitLinear:
    torch.manual_seed(0)
    made = BitLinear(24, rows, **options)  # type: ignore[arg-type]
    torch.nn.init.normal_(made.weight, std=0.02)
    made.product = product
    return made


def output_and_gradients(
    made: BitLinear, x: Tensor, upstream: Tensor, *, autocast: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """y, dL/dx and dL/dW for L = sum(y * upstream); autocast: bf16 in the forward pass, as training has
    it.
    """
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = made(x)
    made.weight.grad = None
    (y * upstream).sum().backward()
    assert x.grad is not None
    assert made.weight.grad is not None
    return y.detach(), x.grad, made.weight.grad


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 5, 24, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def upstream() -> Tensor:
    return torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("product", ["float", "int8", "packed", "autocast"])
def test_the_gradient_is_that_of_the_identity(product: Product, x: Tensor, upstream: Tensor) -> None:
    """dL/dx = dL/dy W^ and dL/dW = dL/dy^T x^ with the values that the forward pass used: rounding is the
    identity.
    """
    made = layer(product)
    _, grad_x, grad_weight = output_and_gradients(made, x, upstream)
    weight = ternarize(made.weight, made.rows).dequantized()
    inputs = quantize_activations(x).dequantized()
    torch.testing.assert_close(grad_x, upstream @ weight)
    torch.testing.assert_close(grad_weight, torch.einsum("bto,bti->oi", upstream, inputs))


def test_codes_are_exact_in_the_autocast_product(x: Tensor, upstream: Tensor) -> None:
    """In bf16 only the sums are rounded, and gradients once before they are multiplied: 2^-8 at most each."""
    fast = output_and_gradients(layer("autocast"), x, upstream, autocast=True)
    plain = output_and_gradients(layer("float"), x, upstream)
    for ours, reference in zip(fast, plain, strict=True):
        assert ours.dtype == torch.float32
        assert float((ours - reference).norm()) < 2**-8 * float(reference.norm())


@pytest.mark.parametrize("product", ["int8", "packed", "autocast"])
def test_the_products_on_codes_equal_the_float_path(product: Product, x: Tensor, upstream: Tensor) -> None:
    """The integer sum is exact, so only the last roundings differ, in the output and in both gradients."""
    for ours, reference in zip(
        output_and_gradients(layer(product), x, upstream),
        output_and_gradients(layer("float"), x, upstream),
        strict=True,
    ):
        torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("width", [1, 2])
def test_the_narrowest_inputs_have_the_right_values_in_both_products(width: int) -> None:
    """On a CPU, torch._int_mm gave unwritten memory for inputs that were one wide."""
    made = BitLinear(width, 3)
    torch.nn.init.normal_(made.weight)
    x = torch.randn(5, width)
    expected = x @ ternarize(made.weight, made.rows).dequantized().t()
    for product in ("float", "int8", "packed"):
        made.product = product
        for _ in range(20):  # the memory may hold the right sums by chance
            torch.testing.assert_close(made(x), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("product", ["int8", "packed"])
def test_the_products_on_codes_are_exact_against_double_precision(product: Product, x: Tensor) -> None:
    made = layer(product)
    codes, step = quantize_activations(x)
    ternary = ternarize(made.weight, made.rows)
    exact = codes.double() @ ternary.codes.double().T * step.double() * ternary.row_scale.double().T
    torch.testing.assert_close(made(x).double(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("product", ["int8", "packed"])
def test_gradient_products_in_bf16_are_within_bf16_rounding(
    product: Product, x: Tensor, upstream: Tensor
) -> None:
    """8 bits of mantissa in each factor: a relative error of about 2^-8 of the gradient's size."""
    made = layer(product)
    reference = output_and_gradients(made, x, upstream)
    made.gradient_dtype = torch.bfloat16
    rounded = output_and_gradients(made, x, upstream)
    assert torch.equal(rounded[0], reference[0])
    for ours, exact in zip(rounded[1:], reference[1:], strict=True):
        assert ours.dtype == torch.float32
        assert not torch.equal(ours, exact)
        assert float((ours - exact).norm() / exact.norm()) < 2**-7


FORMATS = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "autocast": torch.float32,
    "bf16 in autocast": torch.bfloat16,
}


class Reference(NamedTuple):
    """y, dL/dx and dL/dW in float64 from the codes, and how far each may be from that."""

    values: tuple[Tensor, Tensor, Tensor]
    bounds: tuple[Tensor, Tensor, Tensor]


def reference(made: BitLinear, x: Tensor, upstream: Tensor) -> Reference:
    """The layer's definition in float64, on codes that test_quantize.py holds to float64 themselves.

    A sum of n products has at most n + 4 float32 roundings of 2^-24: n - 1 of the sum, one of each factor's
    scale, one of the product, one each for the float path's x + (quantized - x), whose size max(|x|,
    |quantized|) counts. The result is then rounded once to the format of x (of the weight, for dL/dW): half
    of eps, and half the smallest number next to zero.
    """
    int8, ternary = quantize_activations(x), ternarize(made.weight, made.rows)
    inputs = int8.codes.double() * int8.step.double()
    weight = ternary.codes.double() * ternary.row_scale.double()
    large_inputs, large_weight = (
        torch.maximum(inputs.abs(), x.double().abs()),
        torch.maximum(weight.abs(), made.weight.double().abs()),
    )
    g = upstream.double()

    def within(sums: Tensor, value: Tensor, terms: int, to: torch.dtype) -> Tensor:
        kind = torch.finfo(to)
        return (
            (terms + 4) * 2**-24 * sums
            + (value.abs() + sums * 2**-20) * kind.eps / 2
            + kind.smallest_normal * kind.eps / 2
        )

    y, grad_x = inputs @ weight.T, g @ weight
    grad_weight = torch.einsum("bto,bti->oi", g, inputs)
    values = (y, grad_x, grad_weight)
    bounds = (
        within(large_inputs @ large_weight.T, y, made.in_features, x.dtype),
        within(g.abs() @ large_weight, grad_x, made.out_features, x.dtype),
        within(
            torch.einsum("bto,bti->oi", g.abs(), large_inputs),
            grad_weight,
            x.shape[0] * x.shape[1],
            made.weight.dtype,
        ),
    )
    return Reference(tuple(value.detach() for value in values), tuple(bound.detach() for bound in bounds))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", FORMATS)
def test_all_products_and_their_gradients_equal_float64_in_every_number_format(name: str) -> None:
    """Values, not dtypes: in bf16 the int8 product once lost the sign of a token's largest input, and a test
    of dtypes passed.

    In autocast the weights stay float32, while the model hands over float32 or bf16, and gets the same back.
    """
    kind, autocast = FORMATS[name], "autocast" in name
    generator = torch.Generator().manual_seed(7)
    x = (torch.randn(4, 16, 64, generator=generator) * 3).to(kind)
    upstream = torch.randn(4, 16, 24, generator=generator).to(kind)
    outcomes = []
    for product in ("float", "int8", "packed"):
        made = BitLinear(64, (8, 16))
        torch.nn.init.normal_(made.weight, std=0.02, generator=torch.Generator().manual_seed(8))
        made = made if autocast else made.to(kind)
        made.product = product  # type: ignore[assignment]
        outcomes.append(output_and_gradients(made, x, upstream, autocast=autocast))
    values, bounds = reference(made, x, upstream)
    for floats, int8, packed, value, bound in zip(*outcomes, values, bounds, strict=True):
        assert floats.dtype == int8.dtype == packed.dtype
        for found in (floats, int8, packed):
            assert bool(((found.double() - value).abs() <= bound).all())
        assert bool(((int8.double() - floats.double()).abs() <= 2 * bound).all())
        assert torch.equal(int8, packed)
    assert outcomes[0][0].dtype == outcomes[0][1].dtype == kind


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("quantized", ["weights", "activations"])
def test_half_a_control_keeps_the_number_format_of_its_input(name: str, quantized: str) -> None:
    """Only one side quantized: an ordinary product of rounded values, with bf16 factors where autocast or the
    model has them.
    """
    kind, autocast = FORMATS[name], "autocast" in name
    made = layer(**{"activations" if quantized == "weights" else "weights": "full"})
    made = made if autocast else made.to(kind)
    x = torch.randn(3, 5, 24, generator=torch.Generator().manual_seed(3)).to(kind)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = made(x)
    exact, weight = x.double(), made.weight.double()
    if quantized == "weights":
        weight = ternarize(made.weight, made.rows).dequantized().double()
    else:
        exact = quantize_activations(x).dequantized().double()
    eps = torch.finfo(
        torch.bfloat16 if autocast else kind
    ).eps  # half of it for each factor, and for the result
    bound = 2 * eps * (exact.abs() @ weight.abs().T) + 30 * 2**-24
    assert bool(((y.double() - exact @ weight.T).abs() <= bound).all())


def test_weight_quantized_are_the_codes_in_use() -> None:
    made = layer()
    assert set(made.weight_quantized.unique().tolist()) == {-1, 0, 1}
    assert made.weight_quantized.shape == made.weight.shape


def test_a_fused_layer_computes_what_its_parts_compute(x: Tensor) -> None:
    made = layer()
    parts = []
    for part in made.weight.detach().split(made.rows):
        alone = BitLinear(24, part.shape[0])
        alone.weight = torch.nn.Parameter(part.clone())
        parts.append(alone(x))
    torch.testing.assert_close(made(x), torch.cat(parts, dim=-1), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("product", ["float", "int8"])
def test_without_quantization_it_is_an_ordinary_linear_layer(product: Product, x: Tensor) -> None:
    made = layer(product, weights="full", activations="full")
    assert torch.equal(made(x), F.linear(x, made.weight))


def test_weights_and_activations_are_quantized_each_by_itself(x: Tensor) -> None:
    """The two halves of the control: only the inputs rounded, or only the weights."""
    only_inputs = layer(weights="full")
    torch.testing.assert_close(
        only_inputs(x), F.linear(quantize_activations(x).dequantized(), only_inputs.weight)
    )
    only_weights = layer(activations="full")
    torch.testing.assert_close(
        only_weights(x), F.linear(x, ternarize(only_weights.weight, only_weights.rows).dequantized())
    )


def adamw(model: BitNetTransformer) -> None:
    optimizer_step(model, "adamw")


def muon(model: BitNetTransformer) -> None:
    optimizer_step(model, "muon")


def optimizer_step(model: BitNetTransformer, kind: OptimizerKind) -> None:
    """One update large enough to flip many codes."""
    settings = OptimizerConfig(
        kind=kind, adam_beta1=0.9, adam_beta2=0.95, muon_momentum=0.95, muon_lr_ratio=1.0
    )
    model(torch.zeros(1, 4, dtype=torch.int64)).square().sum().backward()
    Optimizers(model, settings).step(Rates(lr=0.05, wd=0.0))


def load(model: BitNetTransformer) -> None:
    other = {name: torch.randn_like(parameter) for name, parameter in model.named_parameters()}
    load_weights(model, Checkpoint(1, other, {}, {}, {}))


@pytest.mark.slow
@pytest.mark.parametrize("change", [adamw, muon, load])
def test_the_kept_codes_follow_every_kind_of_update(
    change: Callable[[BitNetTransformer], None], tiny_config: BitNetConfig
) -> None:
    """Codes are kept per version of a weight; a stale one would train against yesterday's model and say
    nothing.
    """
    torch.manual_seed(0)
    model = BitNetTransformer(tiny_config)
    model.set_product("int8")
    ids = torch.zeros(1, 4, dtype=torch.int64)
    model(ids)
    before = {name: made.ternary()[0].codes.clone() for name, made in model.bit_linears().items()}
    change(model)
    model(ids)
    for name, made in model.bit_linears().items():
        kept, dequantized = made.ternary()
        fresh = ternarize(made.weight, made.rows)
        assert torch.equal(kept.codes, fresh.codes), name
        assert torch.equal(dequantized, fresh.dequantized()), name
        assert not torch.equal(kept.codes, before[name]), f"{name}: the update was too small to test anything"


@pytest.mark.parametrize("change", [adamw, load])
def test_both_packed_copies_follow_an_update(
    change: Callable[[BitNetTransformer], None], tiny_config: BitNetConfig
) -> None:
    """The copy for the input gradient too, which the forward pass would not show to be stale."""
    torch.manual_seed(0)
    model = BitNetTransformer(tiny_config)
    model.set_product("packed", input_gradient="int8")
    model(torch.zeros(1, 4, dtype=torch.int64))
    before = {name: made.packed() for name, made in model.bit_linears().items()}
    change(model)
    model(torch.zeros(1, 4, dtype=torch.int64))
    for name, made in model.bit_linears().items():
        kept, fresh = made.packed(), ternarize(made.weight, made.rows)
        assert torch.equal(kept.tiles, ops.pack(fresh.codes).data), name
        assert torch.equal(kept.backward, ops.pack(fresh.codes, transposed=True).data), name
        assert torch.equal(kept.row_scale, fresh.row_scale), name
        assert not torch.equal(kept.backward, before[name].backward), f"{name}: the update was too small"


@pytest.mark.parametrize("product", ["int8", "packed"])
def test_codes_are_computed_once_per_version_of_a_weight(
    product: Product, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = layer(product)
    calls = []
    module = "packed_linear" if product == "packed" else "bitlinear"
    counting = lambda *words: calls.append(1) or ternarize(*words)  # noqa: E731
    monkeypatch.setattr(f"bitnet.nn.{module}.ternarize", counting)
    for _ in range(3):
        made(x)
    assert len(calls) == 1
    with torch.no_grad():
        made.weight.mul_(2)
    made(x)
    assert len(calls) == 2
