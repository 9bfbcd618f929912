"""What surrounds the ternary products of a training block, in few passes over memory: the fast form of
transformer.py on a CPU, with packed products (packed_linear.py).

    normed_product   layer(norm(x))                       normalised values go straight to int8 codes
    gated_product    layer(activation(gate) * up)         so do gated values, which are computed again for
                     layer(norm(activation(gate) * up))   the backward pass of a norm
    turned_heads     queries, keys and values as attention reads them, in its number format

Each is one autograd function whose two directions are passes of bitnet.kernels.passes, with plain torch where
there are no compiled kernels. The numbers are those of the modules that they stand for, up to the last
rounding: a norm's sum is taken in another order, so that a value on the edge between two codes may take the
other one. The modules remain the reference, and compute whenever nothing is trained.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bitnet.kernels import ops, passes
from bitnet.nn.attend import stays_float32
from bitnet.nn.bitlinear import BitLinear
from bitnet.nn.config import Activation
from bitnet.nn.packed_linear import InputGradient, product_gradients
from bitnet.nn.rms_norm import RMSNorm


def normed_product(norm: RMSNorm, layer: BitLinear, x: Tensor) -> Tensor:
    """layer(norm(x)): (..., in) to (..., out) in the dtype of x."""
    flat = x.reshape(-1, layer.in_features)
    how = norm.eps, *layer.gradient_formats
    y: Tensor = _NormedProduct.apply(flat, norm.weight, layer.weight, *layer.packed(), *how)  # type: ignore[no-untyped-call]
    return y.view(*x.shape[:-1], layer.out_features)


def gated_product(norm: RMSNorm | None, layer: BitLinear, gate_up: Tensor, activation: Activation) -> Tensor:
    """layer(activation(gate) * up), with a norm between where there is one: (..., 2F) to (..., out)."""
    flat = gate_up.reshape(-1, gate_up.shape[-1])
    weight, eps = (None, 0.0) if norm is None else (norm.weight, norm.eps)
    how = eps, activation, *layer.gradient_formats
    y: Tensor = _GatedProduct.apply(flat, weight, layer.weight, *layer.packed(), *how)  # type: ignore[no-untyped-call]
    return y.view(*gate_up.shape[:-1], layer.out_features)


def turned_heads(
    qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (B, H, T, D), keys and values (B, G, T, D) of qkv (B, T, (H + 2G) D), turned by position."""
    kind = qkv.device.type
    in_its_own = not torch.is_autocast_enabled(kind) or stays_float32(qkv, qkv.shape[1])
    dtype = qkv.dtype if in_its_own else torch.get_autocast_dtype(kind)
    q, k, v = _TurnedHeads.apply(qkv, cos, sin, heads, kv_heads, dtype)  # type: ignore[no-untyped-call]
    return q, k, v


class _NormedProduct(torch.autograd.Function):
    """RMSNorm and the ternary product: norm and quantizer in one pass forward, the norm in one backward."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        norm_weight: Tensor,
        weight: Tensor,
        tiles: Tensor,
        row_scale: Tensor,
        backward: Tensor,
        eps: float,
        input_gradient: InputGradient,
        gradient_dtype: torch.dtype,
        weight_dtype: torch.dtype,
    ) -> Tensor:
        codes, step, inverse = ops.quantize_normed_rows(x, norm_weight, eps)
        ctx.save_for_backward(x, norm_weight, inverse, codes, step, row_scale, backward)
        ctx.how = input_gradient, gradient_dtype, weight_dtype
        rows = ops.QuantizedRows(codes, step)
        return ops.product(ops.PackedWeight(tiles, *weight.shape), rows, row_scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, norm_weight, inverse, *kept = ctx.saved_tensors
        grad_normed, grad_weight = product_gradients(grads[0], *kept, *ctx.how)
        grad_x, grad_norm = passes.norm_gradient(grad_normed, x, inverse, norm_weight)
        return grad_x, grad_norm, grad_weight, *[None] * 7


class _GatedProduct(torch.autograd.Function):
    """The gate of a feed-forward layer, a norm where the model has one, and the ternary product."""

    @staticmethod
    def forward(
        ctx: Any,
        gate_up: Tensor,
        norm_weight: Tensor | None,
        weight: Tensor,
        tiles: Tensor,
        row_scale: Tensor,
        backward: Tensor,
        eps: float,
        activation: Activation,
        input_gradient: InputGradient,
        gradient_dtype: torch.dtype,
        weight_dtype: torch.dtype,
    ) -> Tensor:
        inverse = None
        if norm_weight is None:
            codes, step = passes.quantize_gated_rows(gate_up, activation)
        else:
            codes, step, inverse = passes.quantize_gated_normed_rows(gate_up, activation, norm_weight, eps)
        ctx.save_for_backward(gate_up, norm_weight, inverse, codes, step, row_scale, backward)
        ctx.activation, ctx.how = activation, (input_gradient, gradient_dtype, weight_dtype)
        rows = ops.QuantizedRows(codes, step)
        return ops.product(ops.PackedWeight(tiles, *weight.shape), rows, row_scale).to(gate_up.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gate_up, norm_weight, inverse, *kept = ctx.saved_tensors
        grad, grad_weight = product_gradients(grads[0], *kept, *ctx.how)
        grad_norm = None
        if norm_weight is not None:
            gated = passes.gate(gate_up, ctx.activation)  # again, rather than kept: (N, F)
            grad, grad_norm = passes.norm_gradient(grad, gated, inverse, norm_weight)
        grad_gate_up = passes.gate_gradient(grad, gate_up, ctx.activation)
        return grad_gate_up, grad_norm, grad_weight, *[None] * 8


class _TurnedHeads(torch.autograd.Function):
    """Rotary positions, the order of heads and the number format of attention, in one pass each way."""

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        ctx.dtype = qkv.dtype
        return passes.rotary(qkv, cos, sin, heads, kv_heads, dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        q, k, v = grads
        return passes.rotary_gradient(q, k, v, cos, sin, ctx.dtype), None, None, None, None, None
