"""The ternary layer: its gradient, its two products against each other, and codes that are never stale."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

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


def output_and_gradients(made: BitLinear, x: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """y, dL/dx and dL/dW for L = sum(y * upstream)."""
    x = x.clone().requires_grad_()
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


@pytest.mark.parametrize("product", ["float", "int8"])
def test_the_gradient_is_that_of_the_identity(product: Product, x: Tensor, upstream: Tensor) -> None:
    """dL/dx = dL/dy W^ and dL/dW = dL/dy^T x^ with the values that the forward pass used: rounding is the identity."""
    made = layer(product)
    _, grad_x, grad_weight = output_and_gradients(made, x, upstream)
    weight = ternarize(made.weight, made.rows).dequantized()
    inputs = quantize_activations(x).dequantized()
    torch.testing.assert_close(grad_x, upstream @ weight)
    torch.testing.assert_close(grad_weight, torch.einsum("bto,bti->oi", upstream, inputs))


def test_the_int8_product_equals_the_float_path(x: Tensor, upstream: Tensor) -> None:
    """The integer sum is exact, so only the last roundings differ, in the output and in both gradients."""
    for ours, reference in zip(
        output_and_gradients(layer("int8"), x, upstream), output_and_gradients(layer("float"), x, upstream), strict=True
    ):
        torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-6)


def test_the_int8_product_is_exact_against_double_precision(x: Tensor) -> None:
    made = layer("int8")
    codes, step = quantize_activations(x)
    ternary = ternarize(made.weight, made.rows)
    exact = codes.double() @ ternary.codes.double().T * step.double() * ternary.row_scale.double().T
    torch.testing.assert_close(made(x).double(), exact, rtol=1e-6, atol=0)


def test_gradient_products_in_bf16_are_within_bf16_rounding(x: Tensor, upstream: Tensor) -> None:
    """8 bits of mantissa in each factor: a relative error of about 2^-8 of the gradient's size."""
    made = layer("int8")
    reference = output_and_gradients(made, x, upstream)
    made.gradient_dtype = torch.bfloat16
    rounded = output_and_gradients(made, x, upstream)
    assert torch.equal(rounded[0], reference[0])
    for ours, exact in zip(rounded[1:], reference[1:], strict=True):
        assert ours.dtype == torch.float32
        assert not torch.equal(ours, exact)
        assert float((ours - exact).norm() / exact.norm()) < 2**-7


def test_the_int8_product_takes_bf16_inputs() -> None:
    """Under autocast the rest of the model hands over bf16, and gets bf16 back."""
    made = layer("int8")
    x = torch.randn(2, 4, 24).bfloat16().requires_grad_()
    y = made(x)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16
    assert made.weight.grad is not None
    assert made.weight.grad.dtype == torch.float32


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
    torch.testing.assert_close(only_inputs(x), F.linear(quantize_activations(x).dequantized(), only_inputs.weight))
    only_weights = layer(activations="full")
    torch.testing.assert_close(only_weights(x), F.linear(x, ternarize(only_weights.weight, only_weights.rows).dequantized()))


def adamw(model: BitNetTransformer) -> None:
    optimizer_step(model, "adamw")


def muon(model: BitNetTransformer) -> None:
    optimizer_step(model, "muon")


def optimizer_step(model: BitNetTransformer, kind: OptimizerKind) -> None:
    """One update large enough to flip many codes."""
    settings = OptimizerConfig(kind=kind, adam_beta1=0.9, adam_beta2=0.95, muon_momentum=0.95, muon_lr_ratio=1.0)
    model(torch.zeros(1, 4, dtype=torch.int64)).square().sum().backward()
    Optimizers(model, settings).step(Rates(lr=0.05, wd=0.0))


def load(model: BitNetTransformer) -> None:
    other = {name: torch.randn_like(parameter) for name, parameter in model.named_parameters()}
    load_weights(model, Checkpoint(1, other, {}, {}, {}))


@pytest.mark.parametrize("change", [adamw, muon, load])
def test_the_kept_codes_follow_every_kind_of_update(change: Callable[[BitNetTransformer], None], tiny_config: BitNetConfig) -> None:
    """Codes are kept per version of a weight; a stale one would train against yesterday's model and say nothing."""
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


def test_codes_are_computed_once_per_version_of_a_weight(x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    made = layer("int8")
    calls = []
    monkeypatch.setattr("bitnet.nn.bitlinear.ternarize", lambda *words: calls.append(1) or ternarize(*words))
    for _ in range(3):
        made(x)
    assert len(calls) == 1
    with torch.no_grad():
        made.weight.mul_(2)
    made(x)
    assert len(calls) == 2
