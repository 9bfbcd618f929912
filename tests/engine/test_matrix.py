"""Packing a matrix keeps what its format says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models import needs_kernels

from bitnet.engine.matrix import FORMATS, Matrix, pack_dense, pack_ternary, ternarize
from bitnet.errors import DataError
from bitnet.kernels import arrays
from bitnet.nn.quantize import ternarize as torch_ternarize

pytestmark = needs_kernels


def values(matrix: Matrix) -> np.ndarray:
    """The weights (out, in) that a dense matrix stands for, by the layout that ternary.c describes."""
    out, width = matrix.out_features, matrix.in_features
    tiles = -(-out // 16)
    if matrix.format in ("f32", "bf16"):
        narrow = matrix.data.view(np.float32 if matrix.format == "f32" else np.uint16).reshape(
            tiles, width, 16
        )
        wide = narrow if matrix.format == "f32" else (narrow.astype(np.uint32) << 16).view(np.float32)
        return wide.transpose(0, 2, 1).reshape(-1, width)[:out]
    if matrix.format == "int8":
        codes = (
            matrix.data.reshape(tiles, -1, 16, 4).transpose(0, 2, 1, 3).reshape(tiles * 16, -1).astype(int)
            - 128
        )
        return codes[:out, :width] * matrix.scale[:, None]
    pairs = matrix.data.reshape(tiles, -1, 16, 1, 4)
    halves = (
        np.concatenate([pairs & 15, pairs >> 4], axis=3).astype(int) - 8
    )  # (tile, eight inputs, row, half, byte)
    codes = halves.transpose(0, 2, 1, 3, 4).reshape(tiles * 16, -1)
    scale = (
        (matrix.scale.astype(np.uint32) << 16)
        .view(np.float32)
        .reshape(tiles, -1, 16)
        .transpose(0, 2, 1)
        .reshape(tiles * 16, -1)
    )
    return (codes * np.repeat(scale, 32, axis=1))[:out, :width]


@pytest.mark.parametrize("shape", [(1, 2), (16, 32), (33, 50), (20, 300)])
def test_dense_formats_are_as_near_as_their_bits_allow(shape: tuple[int, int]) -> None:
    weight = np.random.default_rng(0).standard_normal(shape, np.float32)
    assert np.array_equal(values(pack_dense(weight, "f32")), weight)
    assert np.array_equal(
        values(pack_dense(weight, "bf16")), torch.from_numpy(weight).bfloat16().float().numpy()
    )
    step = np.abs(weight).max(axis=1, keepdims=True) / 127
    assert (np.abs(values(pack_dense(weight, "int8")) - weight) <= step * 0.5001).all()
    error = values(pack_dense(weight, "int4", threads=2)) - weight
    assert np.sqrt((error**2).mean()) < 0.11  # of weights whose standard deviation is 1
    assert np.abs(error).max() < 0.6


def test_a_row_of_zeros_stays_zero_in_every_format() -> None:
    weight = np.zeros((3, 40), np.float32)
    weight[1] = 1
    for form in ("f32", "bf16", "int8", "int4"):
        found = values(pack_dense(weight, form))
        assert (found[[0, 2]] == 0).all()
        assert np.allclose(found[1], 1, rtol=0.01)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(bad: float) -> None:
    weight = np.ones((20, 30), np.float32)
    weight[17, 29] = bad
    for form in ("f32", "bf16", "int8", "int4"):
        with pytest.raises(DataError, match="not finite"):
            pack_dense(weight, form)


@pytest.mark.parametrize("rows", [(40,), (24, 8, 8)])
def test_codes_without_torch_are_those_of_the_model(rows: tuple[int, ...]) -> None:
    weight = np.random.default_rng(0).standard_normal((40, 70), np.float32)
    codes, scale = ternarize(weight, rows)
    expected = torch_ternarize(torch.from_numpy(weight), rows)
    assert np.array_equal(codes, expected.codes.numpy())
    assert np.allclose(scale, expected.row_scale.flatten().numpy(), rtol=2e-7, atol=0)


def test_half_a_scale_is_rounded_to_zero_as_torch_rounds() -> None:
    weight = np.array([[0.5, -0.5, 1.5, -1.5, 1.0, -1.0]], np.float32)
    codes, scale = ternarize(weight, (1,))
    assert scale.tolist() == [1.0]
    assert codes.tolist() == [[0, 0, 1, -1, 1, -1]]
    assert ternarize(np.zeros((2, 4), np.float32), (2,))[1].tolist() == [np.float32(1e-5)] * 2


def test_ternary_codes_are_kept_at_two_bits() -> None:
    codes = np.random.default_rng(0).integers(-1, 2, (64, 96), dtype=np.int8)
    matrix = pack_ternary(codes, np.ones(64, np.float32))
    assert matrix.data.nbytes == codes.size // 4
    assert np.array_equal(arrays.unpack(arrays.Packed(matrix.data, 64, 96)), codes)


@pytest.mark.parametrize("form", FORMATS)
def test_what_c_reads_has_the_size_of_its_shape(form: str) -> None:
    weight = np.ones((20, 40), np.float32)
    matrix = (
        pack_ternary(weight.astype(np.int8), weight[:, 0]) if form == "ternary" else pack_dense(weight, form)
    )  # type: ignore[arg-type]
    matrix.struct()
    for wrong in (
        matrix._replace(out_features=36),
        matrix._replace(in_features=4000),
        matrix._replace(data=matrix.data[:-1]),
        matrix._replace(data=np.zeros(2 * matrix.data.size, np.uint8)[::2]),
        matrix._replace(in_features=0),
        matrix._replace(out_features=-20),
    ):
        with pytest.raises(ValueError, match=r"bytes|outside|contiguous"):
            wrong.struct()
