"""The kernels on NumPy arrays: every size, type and flag is checked here, because C cannot.

    B rows of input, in -> out features of a matrix.  bfloat16, which NumPy does not have, is uint16 here.

    packed = pack(codes)                    int8 (out, in) in {-1, 0, 1}, once per version of the weights
    codes, step = quantize_rows(x)          (B, in) -> int8 (B, in), float32 (B,)
    y = product(packed, codes, step, scale) float32 (B, out) = sums * scale * step

Sums are exact for every int8 input and up to MAX_INPUTS features. A wrong argument is a ValueError: it is a
mistake in the calling code, not in what a user typed. Not here: torch (ops.py); what happens without a
compiler (library.py, ops.py).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bitnet.errors import DataError
from bitnet.kernels.library import kernels

Array = npt.NDArray[Any]

SIDE = 16  # rows and inputs of a tile
TILE_BYTES = 64
MAX_INPUTS = 1 << 19  # TERNARY_MAX_IN in ternary.c: one more could overflow the sum of a plane
MAX_ROWS = 1 << 31
MAX_THREADS = 256
CACHE_LINE = 64

_OK, _INVALID_CODE, _NO_MEMORY = 0, 1, 2


class Packed(NamedTuple):
    """A packed matrix (out, in): tiles, uint8 (packed_bytes(out, in),), in the layout that ternary.c
    describes.
    """

    tiles: Array
    out_features: int
    in_features: int


def packed_bytes(out_features: int, in_features: int) -> int:
    """Bytes of a packed matrix: 2 bits a weight, both sides rounded up to 16. Raises ValueError beyond the
    limits.
    """
    if not 1 <= in_features <= MAX_INPUTS:
        raise ValueError(
            f"in_features {in_features:,} is outside 1 to {MAX_INPUTS:,}, where sums are exact in 32 bits"
        )
    if not 1 <= out_features < MAX_ROWS:
        raise ValueError(f"out_features {out_features:,} is outside 1 to {MAX_ROWS - 1:,}")
    return -(-out_features // SIDE) * -(-in_features // SIDE) * TILE_BYTES


def empty_tiles(out_features: int, in_features: int) -> Array:
    """Memory for a packed matrix that begins at a cache line: a tile is one line then."""
    return aligned_bytes(packed_bytes(out_features, in_features))


def aligned_bytes(size: int) -> Array:
    """Uninitialised memory, uint8 (size,), that begins at a cache line."""
    room = np.empty(size + CACHE_LINE, np.uint8)
    start = -address(room) % CACHE_LINE
    return room[start : start + size]


def address(array: Array) -> int:
    """Where an array's memory begins."""
    return int(array.__array_interface__["data"][0])


def pack(codes: Array, *, transposed: bool = False, tiles: Array | None = None, threads: int = 1) -> Packed:
    """Pack int8 codes (out, in); with `transposed`, the matrix (in, out) whose product is the input gradient.

    tiles: where to, a uint8 array of packed_bytes. Raises DataError where a code is not -1, 0 or 1.
    """
    _dimensions(codes, "codes", 2)
    out, width = codes.shape[::-1] if transposed else codes.shape
    tiles = empty_tiles(out, width) if tiles is None else tiles
    library, _ = kernels()

    source = _address(codes, "codes", np.int8, codes.shape)
    target = _address(tiles, "tiles", np.uint8, (packed_bytes(out, width),), written=True)
    status = library.ternary_pack(source, out, width, int(transposed), target, _threads(threads))
    if status == _INVALID_CODE:
        raise DataError(
            f"a matrix of {out} x {width} holds codes other than -1, 0 and 1; ternarize the weights first"
        )
    _succeeded(status)
    return Packed(tiles, out, width)


def unpack(packed: Packed) -> Array:
    """The int8 codes (out, in). Raises DataError for two bits that no code has."""
    library, _ = kernels()
    codes = np.empty((packed.out_features, packed.in_features), np.int8)
    status = library.ternary_unpack(
        _tiles(packed), *codes.shape, _address(codes, "codes", np.int8, codes.shape, written=True)
    )
    if status == _INVALID_CODE:
        raise DataError(
            "packed weights hold a code that is none of -1, 0 and 1; pack them again from the weights"
        )
    return codes


def quantize_rows(
    x: Array,
    columns: Array | None = None,
    *,
    codes: Array | None = None,
    step: Array | None = None,
    threads: int = 1,
) -> tuple[Array, Array]:
    """int8 codes (B, in) and float32 steps (B,) of x * columns, by the rule of bitnet.nn.quantize.

    x: (B, in) float32, or uint16 that is bfloat16; columns: float32 (in,) or None. A row with a NaN or an
    infinity gets codes of zero and that value as its step.
    """
    codes, step = _row_outputs(x, codes, step)
    _quantize(x, columns, 0.0, codes, step, None, threads)
    return codes, step


def quantize_normed_rows(
    x: Array,
    weight: Array,
    eps: float,
    *,
    codes: Array | None = None,
    step: Array | None = None,
    inverse: Array | None = None,
    threads: int = 1,
) -> tuple[Array, Array, Array]:
    """quantize_rows of RMSNorm(x) in one pass over x; third result: 1 / rms, float32 (B,), which the backward
    pass needs.

    x: (B, in) float32 or bfloat16 as uint16, whose normalised values are rounded to bfloat16 as the norm
    rounds them. weight: float32 (in,).
    """
    codes, step = _row_outputs(x, codes, step)
    inverse = np.empty(x.shape[0], np.float32) if inverse is None else inverse
    _quantize(x, weight, eps, codes, step, inverse, threads)
    return codes, step, inverse


def sums(packed: Packed, x: Array, *, out: Array | None = None, threads: int = 1) -> Array:
    """int32 (B, out): the exact product of int8 rows (B, in) with the packed matrix."""
    tiles, rows, sides = *_checked(packed, x), packed[1:]
    out = np.empty((rows, sides[0]), np.int32) if out is None else out
    target = _address(out, "out", np.int32, (rows, sides[0]), written=True)
    source = _address(x, "x", np.int8, (rows, sides[1]))
    library, path = kernels()
    if rows:
        _succeeded(library.ternary_sums(path, tiles, *sides, source, rows, target, _threads(threads)))
    return out


def product(
    packed: Packed,
    x: Array,
    step: Array,
    scale: Array | None = None,
    *,
    out: Array | None = None,
    threads: int = 1,
) -> Array:
    """float32 (B, out): sums * scale * step, rounded after each product.

    x: int8 (B, in); step: float32 (B,); scale: float32 (out,), one value per logical matrix repeated for its
    rows, or None for 1.
    """
    tiles, rows, sides = *_checked(packed, x), packed[1:]
    out = np.empty((rows, sides[0]), np.float32) if out is None else out
    target = _address(out, "out", np.float32, (rows, sides[0]), written=True)
    source = _address(x, "x", np.int8, (rows, sides[1]))
    steps = _address(step, "step", np.float32, (rows,))
    scales = None if scale is None else _address(scale, "scale", np.float32, (sides[0],))
    library, path = kernels()
    if rows:
        _succeeded(
            library.ternary_product(
                path, tiles, *sides, source, rows, steps, scales, target, _threads(threads)
            )
        )
    return out


def _quantize(
    x: Array,
    columns: Array | None,
    eps: float,
    codes: Array,
    step: Array,
    inverse: Array | None,
    threads: int,
) -> None:
    rows, width = x.shape
    if not 1 <= width <= MAX_INPUTS:
        raise ValueError(f"rows of {width:,} values: 1 to {MAX_INPUTS:,} can be quantised")
    bf16 = x.dtype == np.uint16
    source = _address(x, "x", np.uint16 if bf16 else np.float32, x.shape)
    factors = None if columns is None else _address(columns, "columns", np.float32, (width,))
    outputs = (
        _address(codes, "codes", np.int8, x.shape, written=True),
        _address(step, "step", np.float32, (rows,), written=True),
    )
    rms = None if inverse is None else _address(inverse, "inverse", np.float32, (rows,), written=True)
    library, path = kernels()
    if rows:
        _succeeded(
            library.ternary_quantize(
                path, source, int(bf16), rows, width, factors, eps, *outputs, rms, _threads(threads)
            )
        )


def _row_outputs(x: Array, codes: Array | None, step: Array | None) -> tuple[Array, Array]:
    _dimensions(x, "x", 2)
    codes = np.empty(x.shape, np.int8) if codes is None else codes
    return codes, np.empty(x.shape[0], np.float32) if step is None else step


def _checked(packed: Packed, x: Array) -> tuple[int, int]:
    """The address of the tiles, and the number of input rows."""
    _dimensions(x, "x", 2)
    return _tiles(packed), int(x.shape[0])


def _tiles(packed: Packed) -> int:
    return _address(packed.tiles, "tiles", np.uint8, (packed_bytes(packed.out_features, packed.in_features),))


def _address(
    array: Array, name: str, dtype: type[np.generic], shape: tuple[int, ...], *, written: bool = False
) -> int:
    """Where an array's memory begins, after checking that C may use it as what it is said to be."""
    if array.dtype != dtype:
        raise ValueError(f"{name} is {array.dtype}, not {np.dtype(dtype)}")
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}, not {shape}")
    flags = array.flags
    if not (flags.c_contiguous and flags.aligned):
        raise ValueError(f"{name} is not contiguous and aligned; copy it first")
    if written and not flags.writeable:
        raise ValueError(f"{name} is written to, but it is read-only")
    return address(array)


def _dimensions(array: Array, name: str, wanted: int) -> None:
    if array.ndim != wanted:
        raise ValueError(f"{name} has {array.ndim} dimensions, not {wanted}")


def _threads(wanted: int) -> int:
    return max(1, min(wanted, MAX_THREADS))


def _succeeded(status: int) -> None:
    if status == _NO_MEMORY:
        raise MemoryError("no memory for the kernels' working space")
    assert status == _OK, status
