"""The kernels on torch tensors, with a torch fallback for each, usable under torch.compile.

    packed = pack(codes)                   W:    int8 (out, in) in {-1, 0, 1}, once per version of the weights
    packed_t = pack(codes, transposed=True)    W^T:  for the input gradient, from the same codes
    q = quantize_rows(x)                       (..., in) -> int8 codes (..., in), float32 steps (..., 1)
    y = product(packed, q, row_scale)          float32 (..., out) = sums * row_scale * step

Input gradient with integers: dL/dx = dL/dy @ (C * s). The scale s belongs to the dimension that is summed
over, so it goes into the rows before they are quantised: product(packed_t, quantize_rows(grad, row_scale)).

The C kernels run for CPU tensors where library.path() names one. Elsewhere the plain code below runs: it is
the reference, and gives the same integers and the same float32. A matrix that was packed on one path can be
used on another. Each operation is registered as torch.ops.bitnet.* with its shapes; outside compiled code the
function is called directly, which saves microseconds. No operation here has a gradient: bitnet.nn.bitlinear
defines them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bitnet.errors import DataError
from bitnet.kernels import arrays, library
from bitnet.kernels.arrays import SIDE, Array, packed_bytes

EPSILON = 1e-5  # as bitnet.nn.quantize, whose rule this is; tests compare them bit for bit
EXACT_FLOAT_INPUTS = 1 << 17  # sums of this many products of magnitude 128 are exact in float32


class PackedWeight(NamedTuple):
    """A matrix (out, in). data: uint8 tiles (packed_bytes,), or the int8 codes themselves where torch
    multiplies.
    """

    data: Tensor
    out_features: int
    in_features: int


class QuantizedRows(NamedTuple):
    """codes: int8 (..., in); step: float32 (..., 1), the value of one unit of a code."""

    codes: Tensor
    step: Tensor


class QuantizedNorm(NamedTuple):
    """codes and step as QuantizedRows; inverse_rms: float32 (..., 1), for the backward pass of the norm."""

    codes: Tensor
    step: Tensor
    inverse_rms: Tensor


def pack(codes: Tensor, *, transposed: bool = False) -> PackedWeight:
    """Pack int8 codes (out, in); with `transposed` the matrix (in, out). Raises DataError where a code is not
    -1, 0 or 1.
    """
    out, width = codes.shape[::-1] if transposed else codes.shape
    packed_bytes(out, width)  # the limits hold on every path
    run = torch.ops.bitnet.pack if torch.compiler.is_compiling() else _pack
    return PackedWeight(run(codes, transposed), out, width)


def unpack(packed: PackedWeight) -> Tensor:
    """The int8 codes (out, in) of a packed matrix."""
    data, out, width = packed
    if data.dtype == torch.int8:
        return data
    lanes = data.view(-1, -(-width // SIDE), SIDE, 4, 1)  # (row tiles, input tiles, row, byte, 1)
    planes = (
        lanes >> torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=data.device)
    ) & 3  # (..., byte, plane)
    codes = planes.permute(0, 2, 1, 4, 3).reshape(-1, -(-width // SIDE) * SIDE)  # input 4 * plane + byte
    return codes[:out, :width].to(torch.int8) - 1


def quantize_rows(x: Tensor, columns: Tensor | None = None) -> QuantizedRows:
    """int8 codes and steps of x * columns. x: (..., in) float32 or bfloat16, else it is made float32;
    columns: (in,) or None.
    """
    run = torch.ops.bitnet.quantize_rows if torch.compiler.is_compiling() else _quantize_rows
    codes, step = run(_rows(x), None if columns is None else columns.reshape(-1))
    return QuantizedRows(codes.view(x.shape), step.view(*x.shape[:-1], 1))


def quantize_normed_rows(x: Tensor, weight: Tensor, eps: float) -> QuantizedNorm:
    """quantize_rows of RMSNorm(x) in one pass. x: (..., in) as above; weight: (in,). The norm keeps the dtype
    of x.
    """
    run = torch.ops.bitnet.quantize_normed_rows if torch.compiler.is_compiling() else _quantize_normed_rows
    codes, step, inverse = run(_rows(x), weight, eps)
    side = (*x.shape[:-1], 1)
    return QuantizedNorm(codes.view(x.shape), step.view(side), inverse.view(side))


def sums(packed: PackedWeight, codes: Tensor) -> Tensor:
    """int32 (..., out): the exact product of int8 rows (..., in) with a packed matrix."""
    run = torch.ops.bitnet.ternary_sums if torch.compiler.is_compiling() else _sums
    total: Tensor = run(*packed, _flat(codes))
    return total.view(*codes.shape[:-1], packed.out_features)


def product(
    packed: PackedWeight, rows: QuantizedRows | QuantizedNorm, row_scale: Tensor | None = None
) -> Tensor:
    """float32 (..., out) = sums * row_scale * step. row_scale: (out,) or (out, 1), one value per logical
    matrix; None is 1.
    """
    run = torch.ops.bitnet.ternary_product if torch.compiler.is_compiling() else _product
    scale = None if row_scale is None else row_scale.reshape(-1)
    y: Tensor = run(*packed, _flat(rows.codes), rows.step.reshape(-1), scale)
    return y.view(*rows.codes.shape[:-1], packed.out_features)


def in_c(tensor: Tensor) -> bool:
    """Whether the C kernels take this tensor."""
    return tensor.device.type == "cpu" and library.path() != library.TORCH


def _pack(codes: Tensor, transposed: bool) -> Tensor:
    if not in_c(codes):
        if codes.numel() and (codes.amin() < -1 or codes.amax() > 1):
            raise DataError(
                f"a matrix of shape {tuple(codes.shape)} holds codes other than -1, 0 and 1; ternarize the "
                "weights first"
            )
        return (codes.t() if transposed else codes).clone(memory_format=torch.contiguous_format)
    shape = codes.shape[::-1] if transposed else codes.shape
    tiles = torch.empty(packed_bytes(*shape), dtype=torch.uint8)
    arrays.pack(_array(codes), transposed=transposed, tiles=_array(tiles), threads=torch.get_num_threads())
    return tiles


def _quantize_rows(x: Tensor, columns: Tensor | None) -> tuple[Tensor, Tensor]:
    if not in_c(x):
        return _quantize_plainly(x.float() if columns is None else x.float() * columns.float())
    codes, step = torch.empty(x.shape, dtype=torch.int8), torch.empty(x.shape[0])
    factors = None if columns is None else _array(columns.float())
    arrays.quantize_rows(
        _array(x), factors, codes=_array(codes), step=_array(step), threads=torch.get_num_threads()
    )
    return codes, step


def _quantize_normed_rows(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    if not in_c(x):
        exact = x.float()
        inverse = (exact.square().mean(dim=-1) + eps).rsqrt()
        normed = (exact * inverse.unsqueeze(-1) * weight.float()).to(x.dtype)
        return *_quantize_plainly(normed.float()), inverse
    codes, step, inverse = (
        torch.empty(x.shape, dtype=torch.int8),
        torch.empty(x.shape[0]),
        torch.empty(x.shape[0]),
    )
    outputs = {"codes": _array(codes), "step": _array(step), "inverse": _array(inverse)}
    arrays.quantize_normed_rows(
        _array(x), _array(weight.float()), eps, **outputs, threads=torch.get_num_threads()
    )
    return codes, step, inverse


def _quantize_plainly(x: Tensor) -> tuple[Tensor, Tensor]:
    """x: float32 (B, in)."""
    largest = x.abs().amax(dim=-1, keepdim=True).clamp(min=EPSILON)
    codes = torch.where(largest.isfinite(), (x * (127.0 / largest)).round(), 0).to(torch.int8)
    return codes, largest.squeeze(-1) / 127.0


def _sums(data: Tensor, out: int, width: int, codes: Tensor) -> Tensor:
    if not (in_c(data) and data.dtype == torch.uint8):
        return _sums_plainly(unpack(PackedWeight(data, out, width)), codes)
    total = torch.empty(codes.shape[0], out, dtype=torch.int32)
    arrays.sums(
        arrays.Packed(_array(data), out, width),
        _array(codes),
        out=_array(total),
        threads=torch.get_num_threads(),
    )
    return total


def _product(data: Tensor, out: int, width: int, codes: Tensor, step: Tensor, scale: Tensor | None) -> Tensor:
    if not (in_c(data) and data.dtype == torch.uint8):
        total = _sums_plainly(unpack(PackedWeight(data, out, width)), codes).float()
        return (total if scale is None else total * scale.float()) * step.unsqueeze(-1)
    y = torch.empty(codes.shape[0], out)
    factors = None if scale is None else _array(scale.float())
    packed = arrays.Packed(_array(data), out, width)
    arrays.product(
        packed, _array(codes), _array(step), factors, out=_array(y), threads=torch.get_num_threads()
    )
    return y


def _sums_plainly(weight: Tensor, codes: Tensor) -> Tensor:
    """int32 (B, out) of int8 weight (out, in) and codes (B, in): in float32 where that is exact and faster,
    else in integers.
    """
    rows, width = codes.shape
    if codes.device.type == "cuda":
        integers = rows > 16 and width % 8 == 0 and weight.shape[0] % 8 == 0  # what cuBLAS takes
    else:
        # torch._int_mm of codes that are one wide returns memory that it never wrote (torch 2.13)
        integers = width > 1 and bool(torch.cpu._is_vnni_supported())
    if integers:
        return torch._int_mm(codes, weight.t())
    dtype = torch.float32 if width <= EXACT_FLOAT_INPUTS else torch.float64
    return (codes.to(dtype) @ weight.to(dtype).t()).to(torch.int32)


def _rows(x: Tensor) -> Tensor:
    x = x.detach()
    return _flat(x if x.dtype in (torch.float32, torch.bfloat16) else x.float())


def _flat(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _array(tensor: Tensor) -> Array:
    """The same memory as a NumPy array, bfloat16 as uint16."""
    tensor = (tensor.detach() if tensor.requires_grad else tensor).contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint16)
    array: Array = tensor.numpy()
    return array


def _register() -> None:
    """torch.ops.bitnet.*: what torch.compile calls, with the shapes that it needs to know beforehand."""
    library_op = torch.library.custom_op
    pack_op = library_op("bitnet::pack", _pack, mutates_args=())
    rows_op = library_op("bitnet::quantize_rows", _quantize_rows, mutates_args=())
    normed_op = library_op("bitnet::quantize_normed_rows", _quantize_normed_rows, mutates_args=())
    sums_op = library_op("bitnet::ternary_sums", _sums, mutates_args=())
    product_op = library_op("bitnet::ternary_product", _product, mutates_args=())

    @pack_op.register_fake
    def _(codes: Tensor, transposed: bool) -> Tensor:
        shape = codes.shape[::-1] if transposed else codes.shape
        return (
            codes.new_empty(packed_bytes(*shape), dtype=torch.uint8)
            if in_c(codes)
            else codes.new_empty(shape)
        )

    @rows_op.register_fake
    def _(x: Tensor, columns: Tensor | None) -> tuple[Tensor, Tensor]:
        return x.new_empty(x.shape, dtype=torch.int8), x.new_empty(x.shape[0], dtype=torch.float32)

    @normed_op.register_fake
    def _(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        side = x.new_empty(x.shape[0], dtype=torch.float32)
        return x.new_empty(x.shape, dtype=torch.int8), side, torch.empty_like(side)

    @sums_op.register_fake
    def _(data: Tensor, out: int, width: int, codes: Tensor) -> Tensor:
        return codes.new_empty((codes.shape[0], out), dtype=torch.int32)

    @product_op.register_fake
    def _(data: Tensor, out: int, width: int, codes: Tensor, step: Tensor, scale: Tensor | None) -> Tensor:
        return codes.new_empty((codes.shape[0], out), dtype=torch.float32)


_register()
