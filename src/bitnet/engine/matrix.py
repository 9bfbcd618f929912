"""The matrices of a packed model: ternary codes at 2 bits, or dense weights in one of four formats.

    format   bytes a weight   values
    ternary  1/4              code * scale, one scale for each logical matrix; inputs are int8
    f32      4                as they are
    bf16     2                rounded to bfloat16
    int8     1                code * scale, one scale for each output row
    int4     9/16             code * scale, one scale (bfloat16) for 32 weights of a row

The layout is that of ternary.c, where "dense tiles" are described. Every array that C will read is made and
sized here, from the shape of the matrix. Not here: which matrix of a model gets which format (weights.py).
"""

from __future__ import annotations

import ctypes
from typing import Literal, NamedTuple

import numpy as np

from bitnet.errors import DataError
from bitnet.kernels import arrays
from bitnet.kernels.arrays import SIDE, Array, packed_bytes
from bitnet.kernels.library import kernels

DenseFormat = Literal["f32", "bf16", "int8", "int4"]
Format = Literal["ternary", "f32", "bf16", "int8", "int4"]
FORMATS: tuple[Format, ...] = (
    "ternary",
    "f32",
    "bf16",
    "int8",
    "int4",
)  # in the order of the enum in ternary.c
INT4_GROUP = 32  # weights of a row that share one scale
EPSILON = 1e-5  # as bitnet.nn.quantize: a scale is never smaller


class MatrixStruct(ctypes.Structure):
    """`struct matrix` of ternary.c."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("out", ctypes.c_int64),
        ("inputs", ctypes.c_int64),
        ("format", ctypes.c_int64),
        ("int8_inputs", ctypes.c_int64),
    )


class Matrix(NamedTuple):
    """A matrix (out, in). data: uint8 tiles; scale: float32 (out,) of ternary and int8, uint16 (bfloat16)
    groups of int4, else empty; int8_inputs: whether its inputs are quantised first.
    """

    format: Format
    out_features: int
    in_features: int
    data: Array
    scale: Array
    int8_inputs: bool

    def struct(self) -> MatrixStruct:
        """What C reads. The arrays must stay alive as long as it is used."""
        for array, size in ((self.data, data_bytes(self)), (self.scale, scale_bytes(self))):
            if array.nbytes != size or not array.flags.c_contiguous:
                raise ValueError(
                    f"a {self.format} matrix of {self.out_features} x {self.in_features} has {array.nbytes} "
                    f"bytes, not {size}"
                )
        return MatrixStruct(
            arrays.address(self.data),
            arrays.address(self.scale),
            self.out_features,
            self.in_features,
            FORMATS.index(self.format),
            int(self.int8_inputs),
        )


def data_bytes(matrix: Matrix) -> int:
    """Bytes of a matrix's tiles, by its format and shape."""
    out, width = matrix.out_features, matrix.in_features
    packed = packed_bytes(out, width)  # the limits hold for every format
    if matrix.format == "ternary":
        return packed
    tile = {
        "f32": 4 * width * SIDE,
        "bf16": 2 * width * SIDE,
        "int8": -(-width // 4) * 4 * SIDE,
        "int4": -(-width // INT4_GROUP) * INT4_GROUP * SIDE // 2,
    }
    return -(-out // SIDE) * tile[matrix.format]


def scale_bytes(matrix: Matrix) -> int:
    """Bytes of a matrix's scales."""
    out, width = matrix.out_features, matrix.in_features
    if matrix.format == "int4":
        return -(-out // SIDE) * -(-width // INT4_GROUP) * SIDE * 2
    return 4 * out if matrix.format in ("ternary", "int8") else 0


def pack_ternary(codes: Array, row_scale: Array, threads: int = 1) -> Matrix:
    """codes: int8 (out, in) in {-1, 0, 1}; row_scale: float32 (out,), one value for each logical matrix
    repeated for its rows.
    """
    scale = np.ascontiguousarray(row_scale, np.float32).reshape(codes.shape[0])
    packed = arrays.pack(np.ascontiguousarray(codes, np.int8), threads=threads)
    return Matrix("ternary", *packed[1:], packed.tiles, scale, int8_inputs=True)


def pack_dense(weight: Array, form: DenseFormat, *, int8_inputs: bool = False, threads: int = 1) -> Matrix:
    """weight: float32 (out, in). Raises DataError where one is not finite."""
    weight = np.ascontiguousarray(weight, np.float32)
    out, width = weight.shape
    empty = Matrix(form, out, width, np.empty(0, np.uint8), np.empty(0, np.uint8), int8_inputs)
    matrix = empty._replace(
        data=arrays.aligned_bytes(data_bytes(empty)),
        scale=np.empty(scale_bytes(empty), np.uint8).view(np.uint16 if form == "int4" else np.float32),
    )
    library, _ = kernels()
    status = library.decoder_pack(
        FORMATS.index(form),
        arrays.address(weight),
        *weight.shape,
        arrays.address(matrix.data),
        arrays.address(matrix.scale),
        threads,
    )
    if status or not np.isfinite(weight.sum(dtype=np.float64)):
        raise DataError(f"a weight of {weight.shape[0]} x {weight.shape[1]} holds values that are not finite")
    return matrix


def ternarize(weight: Array, rows: tuple[int, ...]) -> tuple[Array, Array]:
    """The quantizer of bitnet.nn.quantize without torch: int8 codes (out, in), float32 scales (out,).

    weight: float32 (out, in); rows: output rows of each logical matrix. The mean is taken in double
    precision, so that a scale can differ from torch's, whose sum depends on its threads, in the last bit.
    """
    weight = np.ascontiguousarray(weight, np.float32)
    ends = np.cumsum(rows)
    assert ends[-1] == weight.shape[0], f"{rows} are not the rows of {weight.shape}"
    means = [
        np.abs(weight[end - count : end]).mean(dtype=np.float64)
        for count, end in zip(rows, ends, strict=True)
    ]
    scale = np.repeat(np.maximum(np.array(means), EPSILON).astype(np.float32), rows)
    codes = np.empty(weight.shape, np.int8)
    library, _ = kernels()
    library.decoder_ternarize(
        arrays.address(weight), *weight.shape, arrays.address(scale), arrays.address(codes)
    )
    return codes, scale
