"""The training passes of passes.py in plain torch: the reference, and what runs without the C kernels.

Everything is computed in float32 and rounded once, to the format of the result, as the C code does it. Shapes
as in passes.py, but with rows flattened: N rows.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bitnet.errors import DataError
from bitnet.kernels.ops import EPSILON, _quantize_plainly

Activation = Literal["silu", "relu2"]

CHUNK_VALUES = 1 << 22  # logits that cross-entropy takes to float32 at a time


def gate(gate_up: Tensor, activation: str) -> Tensor:
    """activation(gate) * up. (N, 2F) -> (N, F)."""
    return _gate(gate_up, activation).to(gate_up.dtype)


def _gate(gate_up: Tensor, activation: str) -> Tensor:
    gated, up = gate_up.float().chunk(2, dim=-1)
    return (F.silu(gated) if activation == "silu" else F.relu(gated).square()) * up


def gate_gradient(grad: Tensor, gate_up: Tensor, activation: str) -> Tensor:
    """(N, F) and (N, 2F) -> (N, 2F)."""
    return _gate_gradient(grad, gate_up, activation).to(gate_up.dtype)


def _gate_gradient(grad: Tensor, gate_up: Tensor, activation: str) -> Tensor:
    grad, (gated, up) = grad.float(), gate_up.float().chunk(2, dim=-1)
    if activation == "silu":
        sigmoid = gated.sigmoid()
        slope, value = sigmoid * (1 + gated * (1 - sigmoid)), gated * sigmoid
    else:
        positive = F.relu(gated)
        slope, value = 2 * positive, positive.square()
    return torch.cat((grad * up * slope, grad * value), dim=-1)


def quantize_gated(
    gate_up: Tensor, activation: str, weight: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes (N, F), steps (N,), and 1 / rms (N,) where there is a norm, else empty."""
    gated = _gate(gate_up, activation)
    if weight is None:
        return *_quantize_plainly(gated), gated.new_empty(0)
    inverse = (gated.square().mean(dim=-1) + eps).rsqrt()
    return *_quantize_plainly(gated * inverse.unsqueeze(-1) * weight.float()), inverse


def quantize_gradient(
    grad: Tensor,
    gate_up: Tensor | None,
    activation: str,
    row_scale: Tensor | None,
    input_step: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes (N, out) and steps (N,) of grad * row_scale, and grad * input_step."""
    exact = grad.float() if gate_up is None else _gate_gradient(grad, gate_up, activation)
    codes, step = _quantize_plainly(exact if row_scale is None else exact * row_scale)
    return (
        codes,
        step,
        (exact if input_step is None else exact * input_step.unsqueeze(-1)).to(dtype, copy=True),
    )


def norm_gradient(grad: Tensor, x: Tensor, inverse: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """(N, C) twice, (N,), (C,) -> gradients (N, C) in the dtype of x, and float32 (C,)."""
    grad, weight = grad.float(), weight.float()
    normal = x.float() * inverse.unsqueeze(-1)
    product = grad * normal
    projection = (product * weight).mean(dim=-1, keepdim=True)
    grad_x = (grad * weight - normal * projection) * inverse.unsqueeze(-1)
    return grad_x.to(x.dtype), product.sum(dim=0)


def rotary(
    qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """(B, T, (H + 2G) D) -> (B, H, T, D), (B, G, T, D) twice."""
    batch, tokens, _ = qkv.shape
    parts = qkv.float().view(batch, tokens, heads + 2 * kv_heads, -1).transpose(1, 2)
    q, k, v = torch.split(parts, [heads, kv_heads, kv_heads], dim=1)
    q, k = _turn(q, cos, sin), _turn(k, cos, sin)
    return q.to(dtype).contiguous(), k.to(dtype).contiguous(), v.to(dtype, copy=True).contiguous()


def rotary_gradient(
    grad_q: Tensor, grad_k: Tensor, grad_v: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype
) -> Tensor:
    """The reverse: (B, H, T, D), (B, G, T, D) twice -> (B, T, (H + 2G) D)."""
    turned = [_turn(grad_q.float(), cos, -sin), _turn(grad_k.float(), cos, -sin), grad_v.float()]
    together = torch.cat(turned, dim=1).transpose(1, 2)  # (B, T, H + 2G, D)
    return together.flatten(2).to(dtype)


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Losses (N,); logits (N, V) become the gradient of their sum. Raises DataError for a target that no
    logit has.
    """
    counted = weights != 0
    if bool((counted & ((targets < 0) | (targets >= logits.shape[1]))).any()):
        raise DataError(f"a target is outside of the vocabulary of {logits.shape[1]:,}; check the data")

    losses, rows = torch.zeros(len(logits), device=logits.device), max(1, CHUNK_VALUES // logits.shape[1])
    for start in range(0, len(logits), rows):
        part = slice(start, start + rows)
        where, scale = counted[part].unsqueeze(-1), weights[part].float().unsqueeze(-1)
        target = torch.where(counted[part], targets[part], 0).unsqueeze(-1)
        log_p = logits[part].float().log_softmax(dim=-1)
        losses[part] = torch.where(where, -scale * log_p.gather(1, target), 0).squeeze(-1)
        gradient = log_p.exp_().scatter_add_(1, target, torch.full_like(scale, -1.0))
        logits[part] = torch.where(where, gradient * scale, 0).to(logits.dtype)
    return losses


def pack_weight(weight: Tensor, rows: list[int], scale: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """int8 codes (out, in), their transpose, and scales float32 (out,), given or the mean magnitudes."""
    if scale is None:
        means = [part.abs().double().mean().float().clamp(min=EPSILON) for part in torch.split(weight, rows)]
        scale = torch.cat([mean.expand(count) for mean, count in zip(means, rows, strict=True)])
    else:
        scale = scale.clone()
    limit = scale.unsqueeze(-1) / 2
    codes = (weight > limit).to(torch.int8) - (weight < -limit).to(torch.int8)
    return codes, codes.t().contiguous(), scale
