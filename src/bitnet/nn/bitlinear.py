"""A linear layer with ternary weights and int8 inputs, while the optimizer sees ordinary weights.

Forward. With latent weight W (out, in), codes C = ternary(W), scale s (one per logical matrix, here per row),
input codes Q = int8(x) with step d (one per token):

    y[t, o] = d[t] * s[o] * sum_i Q[t, i] * C[o, i]

The sum is exact in int32, so the integer product and a float32 product agree up to the last rounding.

Backward.  round() has a derivative of zero almost everywhere, so both quantizers are treated as the identity
(straight-through, Bengio et al., arXiv:1308.3432), while the products use the values the forward pass used:

    dL/dx = dL/dy @ (C * s)            dL/dW = (dL/dy)^T @ (Q * d)

The optimizer changes W in small steps; C only flips when a latent weight crosses scale / 2. The codes are
therefore computed once per version of W (an in-place update raises it), not once per micro-batch.

Which product runs is `product`. "float" is the plain path and the reference; "int8" uses torch._int_mm on
real codes; "packed" uses the C kernels on codes packed at 2 bits (packed_linear.py). All give the same
gradients and compute in float32 whatever the format of x, unless `input_gradient` is "int8", which the packed
product can do. "autocast" multiplies codes in the format of autocast, for GPUs and torch.compile: it is made
of plain operations, which Inductor fuses, and codes are exact in bf16. Without quantization (weights="full",
activations="full") this is an ordinary linear layer without bias.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitnet.nn.config import Activations, Weights
from bitnet.nn.packed_linear import (
    GradientFormats,
    InputGradient,
    PackedTernary,
    pack_ternary_weight,
    packed_product,
)
from bitnet.nn.quantize import Ternary, quantize_activations, ternarize

Product = Literal["packed", "int8", "float", "autocast"]
Kept = TypeVar("Kept")


def straight_through(x: Tensor, quantized: Tensor) -> Tensor:
    """The value of `quantized`, in its dtype, with the gradient of `x`."""
    return x + (quantized - x).detach()


class _Int8Product(torch.autograd.Function):
    """y = (Q @ C^T) * d * s on integer codes; gradient products in the dtype of `dequantized`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, codes: Tensor, row_scale: Tensor, dequantized: Tensor
    ) -> Tensor:
        inputs, step = quantize_activations(x)  # (N, in), (N, 1)
        ctx.save_for_backward(inputs, step, dequantized)
        ctx.dtypes = x.dtype, weight.dtype
        total = torch._int_mm(inputs, codes.t())  # (N, out) int32
        return (total.to(row_scale.dtype).mul_(row_scale.t()).mul_(step)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        inputs, step, dequantized = ctx.saved_tensors
        x_dtype, weight_dtype = ctx.dtypes
        grad = grads[0].to(dequantized.dtype)  # (N, out)

        grad_x = (grad @ dequantized).to(x_dtype) if ctx.needs_input_grad[0] else None
        grad_weight = None
        if ctx.needs_input_grad[1]:
            x_quantized = inputs.to(step.dtype).mul_(step).to(dequantized.dtype)  # (N, in)
            grad_weight = (grad.t() @ x_quantized).to(weight_dtype)  # (out, in)
        return grad_x, grad_weight, None, None, None


class BitLinear(nn.Module):
    """Ternary linear layer without bias. Maps (..., in_features) to (..., sum(rows))."""

    def __init__(
        self,
        in_features: int,
        rows: int | tuple[int, ...],
        *,
        weights: Weights = "ternary",
        activations: Activations = "int8",
    ) -> None:
        """rows: output features, one number for each logical matrix stacked in this layer."""
        super().__init__()
        self.rows = (rows,) if isinstance(rows, int) else rows
        self.in_features, self.out_features = in_features, sum(self.rows)
        self.weights: Weights = weights
        self.activations: Activations = activations
        self.product: Product = "float"
        self.gradient_dtype = torch.float32  # dtype of the gradient products on the packed and int8 paths
        self.input_gradient: InputGradient = "float"
        self.weight_dtype: torch.dtype | None = None  # of packed weight gradients; None: the one above
        self.weight = nn.Parameter(torch.empty(self.out_features, in_features))
        self._cached: tuple[tuple[object, ...], Any] | None = None

    @property
    def weight_quantized(self) -> Tensor:
        """The codes that the forward pass uses: int8 (out, in), values in {-1, 0, +1}."""
        return ternarize(self.weight, self.rows).codes

    @property
    def gradient_formats(self) -> GradientFormats:
        """How the packed product computes its two gradients."""
        return self.input_gradient, self.gradient_dtype, self.weight_dtype or self.gradient_dtype

    def ternary(self) -> tuple[Ternary, Tensor]:
        """Codes with scales, and their product in the gradient dtype; kept until the weight changes."""

        def make() -> tuple[Ternary, Tensor]:
            ternary = ternarize(self.weight, self.rows)
            return ternary, ternary.dequantized().to(self.gradient_dtype)

        return self._kept("int8", make)

    def packed(self) -> PackedTernary:
        """The codes as the C kernels multiply by them, both ways; kept until the weight changes."""

        def make() -> PackedTernary:
            return pack_ternary_weight(self.weight, self.rows, self.input_gradient, self.gradient_dtype)

        return self._kept(f"packed, {self.input_gradient} input gradient", make)

    def _kept(self, form: str, make: Callable[[], Kept]) -> Kept:
        """What `make` returns, which is called once per version of the weight."""
        # A compiled graph must not depend on what Python remembers between its calls.
        if torch.compiler.is_compiling():
            return make()

        # The version counts in-place updates; the rest changes when the weight is moved or converted.
        weight = self.weight
        key = (form, weight._version, weight.data_ptr(), weight.device, weight.dtype, self.gradient_dtype)
        if self._cached is None or self._cached[0] != key:
            self._cached = (key, make())
        kept: Kept = self._cached[1]
        return kept

    def forward(self, x: Tensor) -> Tensor:
        if self.weights == "ternary" and self.activations == "int8":
            if self.product == "packed":
                return self._packed_product(x)
            if self.product == "autocast":
                return self._autocast_product(x)
            return self._int8_product(x) if self._integer_product_fits(x) else self._float_product(x)

        # The controls: only one of the two is quantized, or neither.
        weight: Tensor = self.weight
        if self.weights == "ternary":
            weight = straight_through(weight, ternarize(weight, self.rows).dequantized()).to(x.dtype)
        elif self.activations == "int8":
            x = straight_through(x, quantize_activations(x).dequantized()).to(x.dtype)
        return F.linear(x, weight)

    def _packed_product(self, x: Tensor) -> Tensor:
        """The product on packed codes. (..., in) to (..., out) in the dtype of x."""
        flat = x.reshape(-1, self.in_features)  # (N, in)
        y = packed_product(flat, self.weight, self.packed(), self.gradient_formats)
        return y.view(*x.shape[:-1], self.out_features)

    def _int8_product(self, x: Tensor) -> Tensor:
        """The product on integer codes. (..., in) to (..., out) in the dtype of x."""
        ternary, dequantized = self.ternary()
        flat = x.reshape(-1, self.in_features)  # (N, in)
        y: Tensor = _Int8Product.apply(flat, self.weight, ternary.codes, ternary.row_scale, dequantized)  # type: ignore[no-untyped-call]
        return y.view(*x.shape[:-1], self.out_features)

    def _float_product(self, x: Tensor) -> Tensor:
        """The same in float32: (..., in) to (..., out) in the dtype of x."""
        weight = straight_through(self.weight, ternarize(self.weight, self.rows).dequantized())
        inputs = straight_through(x, quantize_activations(x).dequantized())
        # Autocast would make this a bf16 product, and it is the reference for the one on integers.
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(inputs, weight).to(x.dtype)

    def _autocast_product(self, x: Tensor) -> Tensor:
        """The product of codes in the format of autocast: (..., in) to (..., out) in the dtype of x."""
        ternary, rows = ternarize(self.weight, self.rows), quantize_activations(x)
        # In units of scale and step, so that what is rounded to bf16 are whole numbers up to 128.
        weight = straight_through(self.weight.float() / ternary.row_scale, ternary.codes.float())
        inputs = straight_through(x.float() / rows.step, rows.codes.float())
        return (F.linear(inputs, weight) * ternary.row_scale.t() * rows.step).to(x.dtype)

    def _integer_product_fits(self, x: Tensor) -> bool:
        """Whether torch._int_mm is right here: cuBLAS needs more than 16 rows and sides that are multiples of
        8.

        On a CPU it returns memory that it never wrote for inputs that are one wide (torch 2.13).
        """
        if self.product != "int8":
            return False
        if x.device.type != "cuda":
            return self.in_features > 1
        return x.numel() // self.in_features > 16 and self.in_features % 8 == 0 and self.out_features % 8 == 0

    def extra_repr(self) -> str:
        return f"{self.in_features} -> {self.rows}, weights={self.weights}, activations={self.activations}"


def has_fast_int8(device: torch.device) -> bool:
    """Whether torch._int_mm beats float32 on this device: VNNI on a CPU, tensor cores of 7.5+ on CUDA."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (7, 5)
    if device.type != "cpu":
        return False
    check = getattr(torch.cpu, "_is_vnni_supported", None)
    return bool(check and check())
