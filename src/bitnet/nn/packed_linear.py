"""The product of a ternary layer on packed codes, with its gradients: the fast form of bitlinear.py on a CPU.

With codes C (out, in), scale s per row, input codes Q with step d per token, and g = dL/dy:

    forward           y  = (Q @ C^T) * d * s          integers, equal to the "int8" product
    input gradient    dx = (g * s) @ C                "int8": rows of g * s become int8 codes first
    weight gradient   dW = (g * d)^T @ Q              "bf16", where Q is exact; else g^T @ (Q * d)

The scale s belongs to the dimension that the input gradient sums over, and d to the one that the weight
gradient sums over, so each goes into the rows before they are multiplied.

What int8 rows cost. With m the largest magnitude of a row of g * s, every number of that row is rounded to a
multiple of m / 127, and is off by at most half of it. dx[i] sums the numbers whose code C[o, i] is not zero,
so it is off by at most m / 254 times their count (plus float32 rounding), and for errors that are independent
by about m / 440 times the square root of the count. Gradients bear that (SwitchBack, arXiv:2304.13013,
section 2); weight gradients, which sum over all tokens, are not rounded so.

What bf16 rows cost. Every number of g * d is rounded to 8 bits, which is off by at most 2^-8 of it, so that
dW[o, i] is off by at most 2^-8 times the sum of |g d Q| over tokens; then it is rounded to 8 bits itself.
Everything else may stay in float32.

The quantizer of activations counts magnitudes below 1e-5 as 1e-5, and gradients of a mean over thousands of
tokens are smaller. Their pass multiplies them by 2^40, which is exact, and divides the step by it: rows
between 1e-17 and 1e26 keep all their digits. A row with a NaN or an infinity, or beyond 1e26, gives NaN, so
that the update is refused as not finite.

Not here: when codes are packed (BitLinear keeps them per version of its weight), and the plain forms.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from bitnet.kernels import library, ops, passes
from bitnet.nn.quantize import row_scales, ternarize

InputGradient = Literal["int8", "float"]
WeightGradient = Literal["fp32", "bf16", "fp16"]
GradientFormats = tuple[InputGradient, torch.dtype, torch.dtype]
"""How the input gradient is computed, in which format where that is "float", and the format of the weight
gradient.
"""
FAST_PATHS = ("avx512_vnni", "avx_vnni", "avx2", "neon")
"""Kernel paths that beat torch's float32 product: avx2 took 0.3 to 0.65 of its time (docs/log.md)."""
BF16_UNITS = ("avx512_bf16", "amx_bf16", "bf16")
"""Their names among torch.cpu.get_capabilities()."""


class PackedTernary(NamedTuple):
    """A ternary matrix (out, in) as training multiplies by it.

    tiles: packed codes; row_scale: float32 (out, 1); backward: packed codes of the transpose where the input
    gradient is int8, else codes * scale (out, in) in the gradient dtype.
    """

    tiles: Tensor
    row_scale: Tensor
    backward: Tensor


def pack_ternary_weight(
    weight: Tensor, rows: tuple[int, ...], input_gradient: InputGradient, gradient_dtype: torch.dtype
) -> PackedTernary:
    """Both orientations of a weight, once per version of it. rows: as in `bitnet.nn.quantize.row_scales`."""
    if input_gradient == "int8":
        layer = passes.pack_weight(weight, rows, row_scales(weight.detach(), rows))
        return PackedTernary(layer.packed.data, layer.row_scale, layer.packed_t.data)
    ternary = ternarize(weight, rows)
    dequantized = ternary.dequantized().to(gradient_dtype)
    return PackedTernary(ops.pack(ternary.codes).data, ternary.row_scale, dequantized)


def packed_product(x: Tensor, weight: Tensor, packed: PackedTernary, how: GradientFormats) -> Tensor:
    """(N, in) to (N, out) in the dtype of x. weight: the latent one (out, in), which gets the gradient."""
    y: Tensor = _PackedProduct.apply(x, weight, *packed, *how)  # type: ignore[no-untyped-call]
    return y


class _PackedProduct(torch.autograd.Function):
    """The three products of the module's docstring."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        tiles: Tensor,
        row_scale: Tensor,
        backward: Tensor,
        input_gradient: InputGradient,
        gradient_dtype: torch.dtype,
        weight_dtype: torch.dtype,
    ) -> Tensor:
        inputs = ops.quantize_rows(x)  # (N, in), (N, 1)
        ctx.save_for_backward(*inputs, row_scale, backward)
        ctx.x_dtype, ctx.how = x.dtype, (input_gradient, gradient_dtype, weight_dtype)
        return ops.product(ops.PackedWeight(tiles, *weight.shape), inputs, row_scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_x, grad_weight = product_gradients(grads[0], *ctx.saved_tensors, *ctx.how)
        return grad_x.to(ctx.x_dtype), grad_weight, None, None, None, None, None, None


def product_gradients(
    grad: Tensor,
    codes: Tensor,
    step: Tensor,
    row_scale: Tensor,
    backward: Tensor,
    input_gradient: InputGradient,
    dtype: torch.dtype,
    weight_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """dL/dx (N, in) and float32 dL/dW (out, in) of dL/dy (N, out).

    codes, step: of the inputs, (N, in) and (N, 1); row_scale, backward: of `PackedTernary`; the
    last three: of `GradientFormats`.
    """
    if input_gradient == "float":
        return grad.to(dtype) @ backward, _weight_gradient(grad, codes, step, weight_dtype)

    # One pass reads dL/dy for both products.
    both = passes.quantize_gradient(grad, row_scale, step, weight_dtype)
    rows = ops.QuantizedRows(both.codes, both.step)
    grad_x = ops.product(ops.PackedWeight(backward, codes.shape[1], grad.shape[1]), rows)
    return grad_x, (both.scaled.t() @ codes.to(weight_dtype)).float()


def _weight_gradient(grad: Tensor, codes: Tensor, step: Tensor, dtype: torch.dtype) -> Tensor:
    """dL/dW: float32 (out, in), multiplied in a number format."""
    if dtype == torch.bfloat16:  # every code is a bf16 number, while codes * step would be rounded
        return ((grad * step).to(dtype).t() @ codes.to(dtype)).float()
    inputs = codes.to(step.dtype).mul_(step)
    return (grad.to(dtype).t() @ inputs.to(dtype)).float()


def has_fast_packed(device: torch.device) -> bool:
    """Whether the packed product beats torch's on this device: a CPU with compiled, vectorised kernels."""
    return device.type == "cpu" and library.path() in FAST_PATHS


def has_bf16_units(device: torch.device) -> bool:
    """Whether a CPU multiplies bf16 faster than float32: with AVX512-BF16 or AMX, or Arm's bf16 extension."""
    if device.type != "cpu":
        return False
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in BF16_UNITS)
