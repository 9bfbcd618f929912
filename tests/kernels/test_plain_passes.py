"""The plain passes are the operations of bitnet.nn and of torch, whose autograd gives their gradients in
float64.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bitnet.errors import DataError
from bitnet.kernels import plain_passes
from bitnet.nn.quantize import quantize_activations, ternarize
from bitnet.nn.rotary import rotary_table, rotate


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gated(gate_up: Tensor, activation: str) -> Tensor:
    """As FeedForward of bitnet.nn.transformer computes it."""
    gate, up = gate_up.chunk(2, dim=-1)
    return (F.silu(gate) if activation == "silu" else F.relu(gate).square()) * up


@pytest.mark.parametrize("activation", ["silu", "relu2"])
def test_the_gate_and_its_gradient_are_those_of_autograd(activation: str) -> None:
    gate_up, grad = randn(9, 22) * 3, randn(9, 11, seed=1)
    exact = gate_up.double().requires_grad_()
    out = gated(exact, activation)
    out.backward(grad.double())  # type: ignore[no-untyped-call]
    assert exact.grad is not None
    torch.testing.assert_close(plain_passes.gate(gate_up, activation), out.detach().float())
    torch.testing.assert_close(plain_passes.gate_gradient(grad, gate_up, activation), exact.grad.float())


def test_the_norms_gradient_is_that_of_autograd() -> None:
    x, grad, weight = randn(7, 20), randn(7, 20, seed=1), randn(20, seed=2)
    exact, exact_weight = x.double().requires_grad_(), weight.double().requires_grad_()
    F.rms_norm(exact, (20,), exact_weight, 1e-5).backward(grad.double())  # type: ignore[no-untyped-call]
    inverse = (x.square().mean(-1) + 1e-5).rsqrt()
    grad_x, grad_weight = plain_passes.norm_gradient(grad, x, inverse, weight)
    assert exact.grad is not None
    assert exact_weight.grad is not None
    torch.testing.assert_close(grad_x, exact.grad.float())
    torch.testing.assert_close(grad_weight, exact_weight.grad.float())


def test_heads_are_turned_as_in_nn_and_turned_back_by_autograd() -> None:
    batch, tokens, heads, kv_heads, d = 2, 5, 4, 2, 6
    rows = randn(batch, tokens, (heads + 2 * kv_heads) * d).requires_grad_()
    cos, sin = rotary_table(d, tokens, 10_000.0)
    parts = rows.view(batch, tokens, -1, d).transpose(1, 2)
    q, k, v = torch.split(parts, [heads, kv_heads, kv_heads], dim=1)
    theirs = rotate(q, cos, sin), rotate(k, cos, sin), v
    ours = plain_passes.rotary(rows.detach(), cos, sin, heads, kv_heads, torch.float32)
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine, other)
        assert mine.is_contiguous()

    grads = [randn(*part.shape, seed=9) for part in theirs]
    torch.autograd.backward(theirs, grads)
    assert rows.grad is not None
    back = plain_passes.rotary_gradient(*grads, cos, sin, torch.float32)
    torch.testing.assert_close(back, rows.grad, rtol=0, atol=1e-6)


def test_cross_entropy_is_torchs_and_writes_its_gradient_over_the_logits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plain_passes, "CHUNK_VALUES", 40)  # two rows at a time
    logits, targets = randn(7, 19) * 4, torch.tensor([0, 18, 3, -100, 5, 5, 1])
    weights = torch.tensor([1, 1, 0.25, 0, 1, 2, 1])
    exact = logits.double().requires_grad_()
    losses = F.cross_entropy(exact, targets, reduction="none") * weights  # -100 is ignored there
    losses.sum().backward()  # type: ignore[no-untyped-call]
    assert exact.grad is not None
    torch.testing.assert_close(plain_passes.cross_entropy(logits, targets, weights), losses.detach().float())
    torch.testing.assert_close(logits, exact.grad.float(), rtol=1e-5, atol=1e-6)


def test_a_target_that_no_logit_has_is_refused() -> None:
    logits = randn(2, 5)
    before = logits.clone()
    with pytest.raises(DataError, match="outside of the vocabulary of 5"):
        plain_passes.cross_entropy(logits, torch.tensor([0, 5]), torch.ones(2))
    assert torch.equal(logits, before)


def test_gradients_are_quantised_by_the_rule_and_scaled() -> None:
    grad, scale, step = randn(6, 30), randn(30, seed=1).abs(), randn(6, seed=2).abs()
    arguments = (grad, None, "silu", scale, step, torch.bfloat16)
    codes, steps, scaled = plain_passes.quantize_gradient(*arguments)
    rows = quantize_activations(grad * scale)
    assert torch.equal(codes, rows.codes)
    assert torch.equal(steps.unsqueeze(-1), rows.step)
    assert torch.equal(scaled, (grad * step.unsqueeze(-1)).bfloat16())


def test_gated_values_are_quantised_by_the_rule_also_after_a_norm() -> None:
    gate_up, weight = randn(6, 40), randn(20, seed=1)
    codes, step, nothing = plain_passes.quantize_gated(gate_up, "relu2", None, 0.0)
    rows = quantize_activations(gated(gate_up, "relu2"))
    assert torch.equal(codes, rows.codes)
    assert torch.equal(step.unsqueeze(-1), rows.step)
    assert nothing.numel() == 0

    codes, step, inverse = plain_passes.quantize_gated(gate_up, "relu2", weight, 1e-5)
    normed = F.rms_norm(gated(gate_up, "relu2"), (20,), weight, 1e-5)
    rows = quantize_activations(normed)
    assert (codes.int() - rows.codes.int()).abs().max() <= 1
    torch.testing.assert_close(step.unsqueeze(-1), rows.step)
    torch.testing.assert_close(inverse, (gated(gate_up, "relu2").square().mean(-1) + 1e-5).rsqrt())


def test_weights_are_ternarized_by_the_rule_of_nn() -> None:
    weight = randn(24, 33)
    weight[3, :4] = torch.tensor(
        [0.5, -0.5, 0.50000006, -0.50000006]
    )  # ties for a scale of 1, and the next floats
    for scale in (torch.ones(24), ternarize(weight, (8, 16)).row_scale.view(-1)):
        codes, turned, scales = plain_passes.pack_weight(weight, [8, 16], scale)
        expected = (weight / scale.unsqueeze(-1)).round().clamp(-1, 1).to(torch.int8)
        assert torch.equal(codes, expected)
        assert torch.equal(turned, expected.t())
        assert torch.equal(scales, scale)
    theirs = ternarize(weight, (8, 16))
    codes, _, scales = plain_passes.pack_weight(weight, [8, 16], None)
    assert torch.equal(codes, theirs.codes)
    torch.testing.assert_close(scales.unsqueeze(-1), theirs.row_scale, rtol=1e-6, atol=0)
