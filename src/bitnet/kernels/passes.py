"""What training computes beside its products, each in one pass over rows, and under torch.compile.

    N rows (any leading dimensions), F feed-forward width, C hidden width, B texts, T tokens, V vocabulary
    H query heads   G key/value heads   D head width

    q = quantize_gradient(grad, row_scale, step)    dL/dy (N, out): codes for dL/dx, scaled rows for dL/dW
    grad_x, grad_w = norm_gradient(grad, x, inverse_rms, weight)                (N, C) twice -> (N, C), (C,)
    h = gate(gate_up, "silu")                       (N, 2F) -> (N, F); gate_gradient is its backward pass
    q = quantize_gated_rows(gate_up, "silu")        the same, straight to int8 codes
    q, k, v = rotary(qkv, cos, sin, H, G, dtype)    rows of heads to what attention reads; and back
    losses = cross_entropy(logits, targets, weights)    (N, V): the gradient is written over the logits
    layer = pack_weight(weight, rows)               a latent weight to packed tiles, both orientations

Backward pass of a ternary layer y = (Q C^T) * d * s, with dL/dy as g: dL/dx = (g * s) C, whose rows are
quantised (codes, step), and dL/dW = (g * d)^T Q: `scaled` is g * d, and codes are exact in bfloat16.

CPU tensors of float32 and bfloat16 go to C where library.path() names a path; others to plain_passes.py, the
reference. All is computed in float32 and rounded once, and C takes sums in a fixed order: the same bits on
every path and for any number of threads. No operation here has a gradient of its own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from bitnet.kernels import pass_calls, plain_passes
from bitnet.kernels.arrays import packed_bytes
from bitnet.kernels.ops import PackedWeight, QuantizedNorm, QuantizedRows, in_c
from bitnet.kernels.plain_passes import Activation

GRADIENT_FACTOR = 2.0**40
"""The quantizer counts magnitudes below 1e-5 as 1e-5, and gradients are smaller: they are multiplied by this,
which is exact, and their step is divided by it. Rows between 1e-17 and 1e26 keep all their digits.
"""


class QuantizedGradient(NamedTuple):
    """codes: int8 (..., out); step: float32 (..., 1); scaled: (..., out) float32 or bfloat16."""

    codes: Tensor
    step: Tensor
    scaled: Tensor


class PackedLayer(NamedTuple):
    """A ternary matrix and its transpose, packed, with its scales: float32 (out, 1)."""

    packed: PackedWeight
    packed_t: PackedWeight
    row_scale: Tensor


def quantize_gradient(
    grad: Tensor,
    row_scale: Tensor | None = None,
    input_step: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> QuantizedGradient:
    """int8 codes and steps of grad * row_scale, and grad * input_step in `dtype`. grad: (..., out);
    row_scale: (out,) or (out, 1), None is 1; input_step: (..., 1), None is 1. A row with a NaN or an
    infinity, or with products beyond 1e26, gets codes of 0 and a step that is not finite.
    """
    return _quantize_gradient(grad, None, "silu", row_scale, input_step, dtype)


def quantize_gated_gradient(
    grad: Tensor,
    gate_up: Tensor,
    activation: Activation,
    row_scale: Tensor | None = None,
    input_step: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> QuantizedGradient:
    """quantize_gradient of gate_gradient(grad, gate_up) in one pass, (..., F) and (..., 2F) -> (..., 2F)."""
    return _quantize_gradient(grad, gate_up, activation, row_scale, input_step, dtype)


def _quantize_gradient(
    grad: Tensor,
    gate_up: Tensor | None,
    activation: Activation,
    row_scale: Tensor | None,
    input_step: Tensor | None,
    dtype: torch.dtype,
) -> QuantizedGradient:
    run = _op("quantize_gradient", _gradient)
    like = grad if gate_up is None else gate_up
    flat = None if gate_up is None else _flat(gate_up)
    ones = torch.ones(like.shape[-1], device=like.device)
    factors = (ones if row_scale is None else row_scale.detach().float().reshape(-1)) * GRADIENT_FACTOR
    codes, step, scaled = run(_flat(grad), flat, activation, factors, _vector(input_step), dtype)
    step = (step / GRADIENT_FACTOR).view(*like.shape[:-1], 1)
    return QuantizedGradient(codes.view(like.shape), step, scaled.view(like.shape))


def norm_gradient(grad: Tensor, x: Tensor, inverse_rms: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The backward pass of y = x * inverse_rms * weight, an RMSNorm. grad, x: (..., C); inverse_rms: float32
    (..., 1); weight: (C,). Returns dL/dx in the dtype of x, and float32 (C,).
    """
    inverse, factors = _vector(inverse_rms), _vector(weight)
    grad_x, grad_weight = _op("norm_gradient", _norm)(_flat(grad), _flat(x), inverse, factors)
    return grad_x.view(x.shape), grad_weight


def gate(gate_up: Tensor, activation: Activation) -> Tensor:
    """activation(gate) * up: (..., 2F) -> (..., F)."""
    out: Tensor = _op("gate", _gate)(_flat(gate_up), activation)
    return out.view(*gate_up.shape[:-1], out.shape[-1])


def gate_gradient(grad: Tensor, gate_up: Tensor, activation: Activation) -> Tensor:
    """The backward pass of gate: (..., F) and (..., 2F) -> (..., 2F)."""
    out: Tensor = _op("gate_gradient", _gate_gradient)(_flat(grad), _flat(gate_up), activation)
    return out.view(gate_up.shape)


def quantize_gated_rows(gate_up: Tensor, activation: Activation) -> QuantizedRows:
    """ops.quantize_rows of gate(gate_up), without writing the gated values: codes (..., F)."""
    codes, step, _ = _op("quantize_gated", _gated)(_flat(gate_up), activation, None, 0.0)
    return QuantizedRows(codes.view(*gate_up.shape[:-1], codes.shape[-1]), step.view(*gate_up.shape[:-1], 1))


def quantize_gated_normed_rows(
    gate_up: Tensor, activation: Activation, weight: Tensor, eps: float
) -> QuantizedNorm:
    """The same with an RMSNorm between, whose weight is (F,)."""
    codes, step, inverse = _op("quantize_gated", _gated)(_flat(gate_up), activation, _vector(weight), eps)
    side = (*gate_up.shape[:-1], 1)
    return QuantizedNorm(codes.view(*side[:-1], codes.shape[-1]), step.view(side), inverse.view(side))


def rotary(
    qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (B, H, T, D), keys and values (B, G, T, D) in `dtype`, of which queries and keys are turned by
    their positions. qkv: (B, T, (H + 2G) D); cos, sin: (T, D), both halves alike.
    """
    table = cos.float().contiguous(), sin.float().contiguous()
    q, k, v = _op("rotary", _rotary)(qkv.detach().contiguous(), *table, heads, kv_heads, dtype)
    return q, k, v


def rotary_gradient(
    grad_q: Tensor,
    grad_k: Tensor,
    grad_v: Tensor,
    cos: Tensor,
    sin: Tensor,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The backward pass of rotary: gradients of heads, in any layout, to (B, T, (H + 2G) D) in `dtype`."""
    grads = [g.detach() if g.stride(-1) == 1 else g.detach().contiguous() for g in (grad_q, grad_k, grad_v)]
    table = cos.float().contiguous(), sin.float().contiguous()
    out: Tensor = _op("rotary_gradient", _rotary_gradient)(*grads, *table, dtype)
    return out


def cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Losses, float32 (N,): weights * -log softmax(logits)[targets]. The gradient of their sum is written
    over the logits.

    logits: (N, V), contiguous; targets: int64 (N,); weights: (N,). Where a weight is 0 the loss and gradient
    are 0, whatever the target and the logits. Raises DataError for another target outside of 0 to V - 1. A
    NaN or +infinity among a row's logits makes its loss and gradient NaN.
    """
    if not logits.is_contiguous():
        raise ValueError("logits are written to, so they have to be contiguous")
    scored = targets.contiguous(), weights.float().contiguous()
    loss: Tensor = _op("cross_entropy", _cross_entropy)(logits.detach(), *scored)
    return loss


def pack_weight(
    weight: Tensor, rows: tuple[int, ...] | None = None, scale: Tensor | None = None
) -> PackedLayer:
    """Ternary codes of a latent weight (out, in), packed in both orientations, by bitnet.nn.quantize's rule.

    rows: output rows of each logical matrix; default: one. scale: (out,) or (out, 1), and the codes are
    exactly ternarize's for it. Without it, each logical matrix has the mean of its magnitudes, summed in
    float64 and rounded once; ternarize sums in float32, so its scale may differ in the last bits. NaN and
    infinite weights make the scale so, and the codes 0.
    """
    out, width = weight.shape
    run = _op("pack_weight", _pack)
    packed, turned, scales = run(weight.detach().float(), list(rows or (out,)), _vector(scale))
    return PackedLayer(
        PackedWeight(packed, out, width), PackedWeight(turned, width, out), scales.unsqueeze(-1)
    )


def _op(name: str, function: Any) -> Any:
    return getattr(torch.ops.bitnet, name) if torch.compiler.is_compiling() else function


def _flat(x: Tensor) -> Tensor:
    return x.detach().reshape(-1, x.shape[-1]).contiguous()


def _vector(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.detach().float().reshape(-1).contiguous()


def _takes(*tensors: Tensor | None) -> bool:
    """Whether C takes all of these."""
    return all(x is None or (in_c(x) and x.dtype in pass_calls.FLOATS) for x in tensors)


def _gradient(
    grad: Tensor,
    gate_up: Tensor | None,
    activation: str,
    row_scale: Tensor | None,
    input_step: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    if _takes(grad, gate_up) and dtype in pass_calls.FLOATS:
        return pass_calls.quantize_gradient(grad, gate_up, activation, row_scale, input_step, dtype)
    return plain_passes.quantize_gradient(grad, gate_up, activation, row_scale, input_step, dtype)


def _norm(grad: Tensor, x: Tensor, inverse: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    run = pass_calls.norm_gradient if _takes(grad, x) else plain_passes.norm_gradient
    return run(grad, x, inverse, weight)


def _gate(gate_up: Tensor, activation: str) -> Tensor:
    run = pass_calls.gate if _takes(gate_up) else plain_passes.gate
    return run(gate_up, activation)


def _gate_gradient(grad: Tensor, gate_up: Tensor, activation: str) -> Tensor:
    run = pass_calls.gate_gradient if _takes(grad, gate_up) else plain_passes.gate_gradient
    return run(grad, gate_up, activation)


def _gated(
    gate_up: Tensor, activation: str, weight: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    run = pass_calls.quantize_gated if _takes(gate_up) else plain_passes.quantize_gated
    return run(gate_up, activation, weight, eps)


def _rotary(
    qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    fits = _takes(qkv) and dtype in pass_calls.FLOATS
    run = pass_calls.rotary if fits else plain_passes.rotary
    return run(qkv, cos, sin, heads, kv_heads, dtype)


def _rotary_gradient(
    grad_q: Tensor, grad_k: Tensor, grad_v: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype
) -> Tensor:
    fits = _takes(grad_q, grad_k, grad_v) and dtype in pass_calls.FLOATS
    run = pass_calls.rotary_gradient if fits else plain_passes.rotary_gradient
    return run(grad_q, grad_k, grad_v, cos, sin, dtype)


def _cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    run = pass_calls.cross_entropy if _takes(logits) else plain_passes.cross_entropy
    return run(logits, targets, weights)


def _pack(weight: Tensor, rows: list[int], scale: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    run = pass_calls.pack_weight if _takes(weight) else plain_passes.pack_weight
    return run(weight, rows, scale)


def _register() -> None:
    """torch.ops.bitnet.*: what torch.compile calls. The plain passes tell it the shapes."""
    for name, function, shapes in (
        ("quantize_gradient", _gradient, plain_passes.quantize_gradient),
        ("norm_gradient", _norm, plain_passes.norm_gradient),
        ("gate", _gate, plain_passes.gate),
        ("gate_gradient", _gate_gradient, plain_passes.gate_gradient),
        ("quantize_gated", _gated, plain_passes.quantize_gated),
        ("rotary", _rotary, plain_passes.rotary),
        ("rotary_gradient", _rotary_gradient, plain_passes.rotary_gradient),
    ):
        torch.library.custom_op(f"bitnet::{name}", function, mutates_args=()).register_fake(shapes)

    loss = torch.library.custom_op("bitnet::cross_entropy", _cross_entropy, mutates_args=("logits",))
    loss.register_fake(lambda logits, targets, weights: weights.new_empty(weights.shape))
    pack = torch.library.custom_op("bitnet::pack_weight", _pack, mutates_args=())

    @pack.register_fake
    def _(weight: Tensor, rows: list[int], scale: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        codes, turned, scales = plain_passes.pack_weight(weight, rows, scale)
        if not in_c(weight):
            return codes, turned, scales
        tiles, turned_tiles = packed_bytes(*codes.shape), packed_bytes(*turned.shape)
        data = codes.new_empty(tiles, dtype=torch.uint8), codes.new_empty(turned_tiles, dtype=torch.uint8)
        return *data, scales


_register()
