"""The fused forms of a training block against its modules: values and gradients, in every number format."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from bitnet.nn import attend
from bitnet.nn.bitlinear import BitLinear
from bitnet.nn.config import BitNetConfig
from bitnet.nn.fused import gated_product, normed_product, turned_heads
from bitnet.nn.kv_cache import KVCache
from bitnet.nn.rms_norm import RMSNorm
from bitnet.nn.rotary import rotary_table, rotate
from bitnet.nn.transformer import BitNetTransformer, FeedForward
from conftest import needs_compiler

KINDS = {"fp32": torch.float32, "bf16": torch.bfloat16}
GRADIENTS = ("float", "int8")
FLIPPED = 0.02
"""Relative: a code that takes the other side of an edge because a norm's sum has another order."""


def layer(width: int, out: int, kind: str, input_gradient: Any) -> BitLinear:
    made = BitLinear(width, out)
    torch.nn.init.normal_(made.weight, std=0.05)
    made.product, made.gradient_dtype, made.input_gradient = "packed", KINDS[kind], input_gradient
    return made


def norm(width: int) -> RMSNorm:
    made = RMSNorm(width, 1e-5)
    torch.nn.init.uniform_(made.weight, 0.5, 1.5)
    return made


def gradients(y: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """Of a fixed random weighting of y."""
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(5))
    return list(torch.autograd.grad((y * upstream).sum(), inputs))


def close(ours: Tensor, plain: Tensor, limit: float = FLIPPED) -> bool:
    assert ours.dtype == plain.dtype
    ours, plain = ours.detach().double(), plain.detach().double()
    return float((ours - plain).norm()) <= limit * float(plain.norm())


@pytest.mark.parametrize("input_gradient", GRADIENTS)
@pytest.mark.parametrize("kind", KINDS)
def test_norm_and_product_are_those_of_the_modules(kind: str, input_gradient: str) -> None:
    torch.manual_seed(0)
    first, second = norm(40), layer(40, 24, kind, input_gradient)
    x = torch.randn(3, 7, 40, requires_grad=True)
    wanted = [x, first.weight, second.weight]
    ours, plain = normed_product(first, second, x), second(first(x))
    assert close(ours, plain)
    for one, other in zip(gradients(ours, wanted), gradients(plain, wanted), strict=True):
        assert close(one, other)


@pytest.mark.parametrize("input_gradient", GRADIENTS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sub_norm", [False, True])
@pytest.mark.parametrize("activation", ["silu", "relu2"])
def test_gate_and_product_are_those_of_the_modules(
    tiny_config: BitNetConfig, activation: Any, sub_norm: bool, kind: str, input_gradient: str
) -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(tiny_config, activation=activation, sub_norm=sub_norm)
    block = FeedForward(config)
    block.down = layer(config.ffn_hidden_size, config.hidden_size, kind, input_gradient)
    gate_up = torch.randn(3, 5, 2 * config.ffn_hidden_size, requires_grad=True)
    wanted = [gate_up, block.down.weight] + ([] if block.sub_norm is None else [block.sub_norm.weight])

    ours = gated_product(block.sub_norm, block.down, gate_up, activation)
    gate, up = gate_up.chunk(2, dim=-1)
    gated = (torch.nn.functional.silu(gate) if activation == "silu" else gate.relu().square()) * up
    plain = block.down(gated if block.sub_norm is None else block.sub_norm(gated))
    assert close(ours, plain)
    for one, other in zip(gradients(ours, wanted), gradients(plain, wanted), strict=True):
        assert close(one, other)


@pytest.mark.parametrize(("autocast", "short"), [(False, True), (True, True), (True, False)])
def test_heads_are_turned_as_by_rotate(monkeypatch: pytest.MonkeyPatch, autocast: bool, short: bool) -> None:
    """For long rows under autocast they are rounded to bf16 once, as attention would round what rotate gives
    in float32.
    """
    monkeypatch.setattr(attend, "LONG_ROW", 7 if short else 6)
    cos, sin = rotary_table(8, 6, 1e4)
    qkv = torch.randn(2, 6, 4 * 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours = turned_heads(qkv, cos, sin, 2, 1)
    assert ours[0].dtype == (torch.bfloat16 if autocast and not short else torch.float32)
    q, k, v = qkv.view(2, 6, 4, 8).transpose(1, 2).split((2, 1, 1), dim=1)
    plain = [part.to(ours[0].dtype) for part in (rotate(q, cos, sin), rotate(k, cos, sin), v)]
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6 if short else 2**-7, atol=1e-6)
    ((one,), (other,)) = (gradients(torch.cat(parts, 1).float(), [qkv]) for parts in (ours, plain))
    assert close(one, other, 1e-6 if short else 2**-7)


def model_and_loss(config: BitNetConfig, **how: Any) -> tuple[BitNetTransformer, Tensor]:
    torch.manual_seed(1)
    model = BitNetTransformer(config)
    model.set_product("packed", **how)
    ids = torch.arange(24).view(2, 12) % config.vocab_size
    segments = torch.tensor([[0] * 5 + [1] * 7] * 2)
    return model, model(ids, segments=segments).float().square().mean()


@pytest.mark.parametrize("input_gradient", GRADIENTS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sub_norm", [False, True])
def test_a_whole_model_has_the_same_loss_and_gradients(
    tiny_config: BitNetConfig, sub_norm: bool, kind: str, input_gradient: str
) -> None:
    config = dataclasses.replace(tiny_config, sub_norm=sub_norm)
    losses, found = [], []
    for fused in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == "bf16"):
            how = {"gradient_dtype": KINDS[kind], "input_gradient": input_gradient, "fused": fused}
            model, loss = model_and_loss(config, **how)
        losses.append(float(loss.detach()))
        found.append(
            dict(
                zip(
                    dict(model.named_parameters()),
                    torch.autograd.grad(loss, list(model.parameters())),
                    strict=True,
                )
            )
        )
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)
    for name, gradient in found[0].items():
        assert close(gradient, found[1][name], 0.1), name


def test_the_modules_compute_where_nothing_is_trained(
    tiny_config: BitNetConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evaluation, probes and chat see every module; training calls attention too, which dumps look into."""
    monkeypatch.setattr("bitnet.nn.transformer.fused_forms", None)  # calling it would fail
    torch.manual_seed(1)
    model = BitNetTransformer(tiny_config)
    model.set_product("packed", fused=True)
    ids = torch.zeros(1, 4, dtype=torch.int64)
    with torch.no_grad():
        model(ids)
    cache: KVCache = model.new_cache(1)
    model(ids, cache)
    with pytest.raises(AttributeError):
        model(ids)


def test_the_control_has_no_fused_blocks(tiny_config: BitNetConfig) -> None:
    model = BitNetTransformer(tiny_config.with_weights("full"))
    model.set_product("packed", fused=True)
    assert not any(block.fused for block in model.blocks)


@pytest.mark.slow
@needs_compiler
def test_compiled_it_is_one_graph_and_equal(tiny_config: BitNetConfig) -> None:
    torch.manual_seed(1)
    model = BitNetTransformer(tiny_config)
    model.set_product("packed", input_gradient="int8", fused=True)
    ids = torch.arange(24).view(2, 12) % tiny_config.vocab_size
    found = []
    for form in (model, torch.compile(model, fullgraph=True)):
        model.zero_grad()
        loss = form(ids).square().mean()
        loss.backward()
        found.append([loss.detach(), *(parameter.grad for parameter in model.parameters())])
    for one, other in zip(*found, strict=True):
        assert close(one, other, 0.05)
