"""Every path gives the integers of a plain product, and nothing wrong reaches C. Needs NumPy only: it also
runs under sanitizers.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitnet.errors import DataError
from bitnet.kernels import arrays, library
from bitnet.kernels.arrays import MAX_INPUTS, Array, Packed

pytest_plugins = ["kernel_paths"]  # fixtures: path, use, empty_cache

quick = settings(
    deadline=None, max_examples=30, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


def random_codes(out: int, width: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(-1, 2, (out, width), dtype=np.int8)


def random_inputs(rows: int, width: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed + 1).integers(-128, 128, (rows, width), dtype=np.int8)


def plain_product(codes: Array, x: Array) -> Array:
    return x.astype(np.int64) @ codes.astype(np.int64).T


@quick
@given(st.integers(1, 70), st.integers(1, 130), st.integers(0, 20), st.integers(1, 3), st.integers(0, 99))
def test_sums_are_exact_for_every_shape(
    path: str, out: int, width: int, rows: int, threads: int, seed: int
) -> None:
    codes, x = random_codes(out, width, seed), random_inputs(rows, width, seed)
    packed = arrays.pack(codes, threads=threads)
    assert np.array_equal(arrays.sums(packed, x, threads=threads), plain_product(codes, x))
    transposed = arrays.pack(np.ascontiguousarray(codes.T), transposed=True, threads=threads)
    assert np.array_equal(transposed.tiles, packed.tiles)
    assert np.array_equal(arrays.unpack(packed), codes)


def test_sums_are_exact_where_several_threads_share_the_work(path: str) -> None:
    codes, x = random_codes(1000, 768), random_inputs(150, 768)
    expected = plain_product(codes, x)
    packed = arrays.pack(codes, threads=3)
    for threads in (1, 2, 3, 8):
        assert np.array_equal(arrays.sums(packed, x, threads=threads), expected)
        assert np.array_equal(arrays.sums(packed, x[:1].copy(), threads=threads), expected[:1])


def test_all_81_patterns_of_a_byte_meet_all_inputs(path: str) -> None:
    """A byte holds the codes of inputs b, b + 4, b + 8 and b + 12: three values each, 81 patterns, here in 96
    bytes.
    """
    patterns = list(itertools.product((-1, 0, 1), repeat=4))
    codes = np.zeros((16, 32), np.int8)
    for index, pattern in enumerate(patterns):
        row, place = index // 8, index % 8
        codes[row, [16 * (place // 4) + 4 * plane + place % 4 for plane in range(4)]] = pattern
    packed = arrays.pack(codes)
    assert len(set(packed.tiles.tolist())) == 81

    every_value = np.repeat(np.arange(-128, 128, dtype=np.int8)[:, None], 32, axis=1)
    mixed = np.stack([np.roll(np.arange(-128, 128, dtype=np.int8), shift)[:32] for shift in range(256)])
    for x in (every_value, mixed):
        assert np.array_equal(arrays.sums(packed, x), plain_product(codes, x))


@pytest.mark.parametrize("tiles", [15, 16, 17, 64, 65])
@pytest.mark.parametrize("value", [-128, 127])
def test_sixteen_bits_never_saturate(path: str, tiles: int, value: int) -> None:
    """AVX2 adds in 16 bits, where 64 planes of the largest products overflow (microsoft/BitNet #629 is that
    bug).
    """
    for weight in (-1, 1):
        codes = np.full((33, 16 * tiles), weight, np.int8)
        for rows in (1, 2, 4, 9):
            x = np.full((rows, 16 * tiles), value, np.int8)
            assert (arrays.sums(arrays.pack(codes), x) == weight * value * 16 * tiles).all()


@pytest.mark.parametrize("value", [-128, 127])
def test_sums_are_exact_up_to_the_documented_limit(path: str, value: int) -> None:
    codes = np.ones((3, MAX_INPUTS), np.int8)
    codes[1] = -1
    packed = arrays.pack(codes)
    for rows in (1, 2, 5):
        sums = arrays.sums(packed, np.full((rows, MAX_INPUTS), value, np.int8), threads=2)
        assert (sums == np.array([1, -1, 1]) * value * MAX_INPUTS).all()


def test_one_input_more_than_the_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="524,289 is outside"):
        arrays.packed_bytes(1, MAX_INPUTS + 1)


@quick
@given(st.integers(1, 40), st.integers(1, 90), st.integers(1, 17), st.integers(0, 99))
def test_product_scales_and_rounds_as_plain_float32(
    path: str, out: int, width: int, rows: int, seed: int
) -> None:
    codes, x, rng = (
        random_codes(out, width, seed),
        random_inputs(rows, width, seed),
        np.random.default_rng(seed),
    )
    step, scale = rng.random(rows, np.float32), rng.random(out, np.float32)
    packed, total = arrays.pack(codes), plain_product(codes, x).astype(np.float32)
    assert np.array_equal(arrays.product(packed, x, step, scale), total * scale * step[:, None])
    assert np.array_equal(arrays.product(packed, x, step), total * step[:, None])


def plain_quantize(x: Array) -> tuple[Array, Array]:
    """The rule of bitnet.nn.quantize in NumPy's float32; torch takes the reciprocal for 127 / largest."""
    largest = np.maximum(np.abs(x).max(axis=1, keepdims=True), np.float32(1e-5))
    codes = np.rint(x * (np.float32(1) / largest * np.float32(127))).astype(np.int8)
    return codes, (largest / np.float32(127))[:, 0]


@quick
@given(
    st.integers(1, 20),
    st.integers(1, 300),
    st.sampled_from([1e-38, 1e-7, 1e-5, 1.0, 1e30]),
    st.integers(0, 99),
)
def test_rows_are_quantised_by_the_rule(path: str, rows: int, width: int, size: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((rows, width), np.float32) * np.float32(size)).astype(np.float32)
    for got, expected in zip(arrays.quantize_rows(x, threads=2), plain_quantize(x), strict=True):
        assert np.array_equal(got, expected)
    columns = rng.random(width, np.float32)
    for got, expected in zip(arrays.quantize_rows(x, columns), plain_quantize(x * columns), strict=True):
        assert np.array_equal(got, expected)


def test_halves_are_rounded_to_even_and_the_largest_gets_127(path: str) -> None:
    x = np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5, -126.5, -127]], np.float32)
    codes, step = arrays.quantize_rows(x)
    assert codes.tolist() == [[127, 0, 2, 2, 0, -2, -126, -127]]
    assert step.tolist() == [1.0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_spoils_its_own_output_only(path: str, bad: float) -> None:
    x = np.ones((3, 20), np.float32)
    x[1, 7] = bad
    codes, step = arrays.quantize_rows(x)
    assert (codes[1] == 0).all()
    assert not np.isfinite(step[1])
    assert np.array_equal(np.isnan(step), [False, bool(np.isnan(bad)), False])
    y = arrays.product(arrays.pack(np.ones((4, 20), np.int8)), codes, step)
    assert np.isnan(y[1]).all()
    assert (y[[0, 2]] == np.float32(127 * 20) * step[0]).all()


def plain_norm(x: Array, weight: Array, eps: float) -> Array:
    return (x / np.sqrt((x.astype(np.float64) ** 2).mean(axis=1, keepdims=True) + eps) * weight).astype(
        np.float32
    )


@pytest.mark.parametrize("width", [1, 16, 20, 768])
def test_the_fused_norm_is_a_norm_and_then_the_rule(path: str, width: int) -> None:
    """The norm's sum is rounded in another order than NumPy's: codes may differ by one where a value is
    almost half-way.
    """
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((12, width), np.float32), rng.random(width, np.float32) + np.float32(0.1)
    codes, step, inverse = arrays.quantize_normed_rows(x, weight, 1e-6, threads=2)
    normed = plain_norm(x, weight, 1e-6)
    expected, expected_step = plain_quantize(normed)
    assert np.abs(codes.astype(int) - expected).max() <= 1
    assert (codes != expected).mean() < 0.001
    assert np.allclose(step, expected_step, rtol=1e-6)
    assert np.allclose(inverse[:, None] * x * weight, normed, rtol=1e-5)


def test_float_parts_have_the_same_bits_on_every_path(path: str, use: Callable[[Any, str], None]) -> None:
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((9, 1000), np.float32), rng.random(1000, np.float32)
    narrow = (x.view(np.uint32) >> 16).astype(np.uint16)

    def results() -> list[Array]:
        return [
            *arrays.quantize_rows(x),
            *arrays.quantize_rows(narrow, weight),
            *arrays.quantize_normed_rows(x, weight, 1e-5),
            *arrays.quantize_normed_rows(narrow, weight, 1e-5),
        ]

    here = results()
    use(None, "scalar")
    for mine, scalar in zip(here, results(), strict=True):
        assert np.array_equal(mine, scalar)


def test_codes_other_than_ternary_are_refused() -> None:
    for bad in (-128, -2, 2, 3, 127):
        codes = np.zeros((20, 20), np.int8)
        codes[19, 19] = bad
        with pytest.raises(DataError, match="other than -1, 0 and 1"):
            arrays.pack(codes)
    packed = arrays.pack(np.zeros((4, 4), np.int8))
    packed.tiles[0] = 0xFF
    with pytest.raises(DataError, match="none of -1, 0 and 1"):
        arrays.unpack(packed)


def good() -> dict[str, Any]:
    return {
        "packed": arrays.pack(random_codes(20, 40)),
        "x": random_inputs(3, 40),
        "step": np.ones(3, np.float32),
        "scale": np.ones(20, np.float32),
        "out": np.empty((3, 20), np.float32),
    }


def read_only(array: Array) -> Array:
    array.flags.writeable = False
    return array


def misaligned(shape: tuple[int, ...]) -> Array:
    return np.zeros(4 * int(np.prod(shape)) + 1, np.uint8)[1:].view(np.float32).reshape(shape)


WRONG: dict[str, tuple[str, Callable[[], Any], str]] = {
    "x too narrow": ("x", lambda: random_inputs(3, 39), "x has shape"),
    "x too wide": ("x", lambda: random_inputs(3, 41), "x has shape"),
    "x not rows": ("x", lambda: random_inputs(3, 40).ravel(), "dimensions"),
    "x unsigned": ("x", lambda: random_inputs(3, 40).view(np.uint8), "x is uint8"),
    "x strided": ("x", lambda: random_inputs(3, 80)[:, ::2], "not contiguous"),
    "step too short": ("step", lambda: np.ones(2, np.float32), "step has shape"),
    "step double": ("step", lambda: np.ones(3), "step is float64"),
    "scale too short": ("scale", lambda: np.ones(19, np.float32), "scale has shape"),
    "scale misaligned": ("scale", lambda: misaligned((20,)), "not contiguous and aligned"),
    "out too small": ("out", lambda: np.empty((2, 20), np.float32), "out has shape"),
    "out read-only": ("out", lambda: read_only(np.empty((3, 20), np.float32)), "read-only"),
    "tiles cut short": (
        "packed",
        lambda: Packed(np.zeros(2 * 3 * 64 - 1, np.uint8), 20, 40),
        "tiles has shape",
    ),
    "tiles of another shape": (
        "packed",
        lambda: arrays.pack(random_codes(20, 16))._replace(in_features=40),
        "tiles has shape",
    ),
    "no rows of weights": ("packed", lambda: Packed(np.zeros(0, np.uint8), 0, 40), "out_features 0"),
    "negative side": ("packed", lambda: Packed(np.zeros(64, np.uint8), -16, -16), "in_features -16"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_never_reach_c(name: str) -> None:
    arrays.product(**good())
    argument, make, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        arrays.product(**{**good(), argument: make()})


def test_wrong_rows_to_quantise_never_reach_c() -> None:
    x = np.ones((2, 8), np.float32)
    for bad, message in (
        ({"x": x.astype(np.float64)}, "x is float64"),
        ({"x": x[:, ::2]}, "not contiguous"),
        ({"x": np.ones((2, 0), np.float32)}, "rows of 0 values"),
        ({"columns": np.ones(7, np.float32)}, "columns has shape"),
        ({"codes": np.empty((2, 7), np.int8)}, "codes has shape"),
        ({"step": np.empty(3, np.float32)}, "step has shape"),
    ):
        with pytest.raises(ValueError, match=message):
            arrays.quantize_rows(**{"x": x, **bad})
    with pytest.raises(ValueError, match="inverse has shape"):
        arrays.quantize_normed_rows(x, np.ones(8, np.float32), 1e-5, inverse=np.empty(1, np.float32))


def test_two_python_threads_at_once_get_right_results() -> None:
    """The pool does one job at a time; a caller that finds it busy works alone."""
    codes, x = random_codes(600, 512), random_inputs(64, 512)
    expected, packed, wrong = plain_product(codes, x), arrays.pack(codes), []

    def work() -> None:
        wrong.extend(
            number for number in range(20) if not np.array_equal(arrays.sums(packed, x, threads=2), expected)
        )

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_a_forked_child_has_threads_of_its_own() -> None:
    """Threads do not survive a fork: a pool that counted on the parent's would wait for ever."""
    codes, x = random_codes(600, 512), random_inputs(64, 512)
    packed, expected = arrays.pack(codes), plain_product(codes, x)
    arrays.sums(packed, x, threads=2)
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(arrays.sums(packed, x, threads=2), expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert np.array_equal(arrays.sums(packed, x, threads=2), expected)


def test_tiles_begin_at_a_cache_line() -> None:
    assert all(arrays.empty_tiles(out, 40).__array_interface__["data"][0] % 64 == 0 for out in range(1, 60))


def test_without_the_library_one_line_says_what_to_use(use: Callable[[Any, str], None]) -> None:
    use(None, "torch")
    with pytest.raises(ValueError, match=r"because BITNET_KERNEL=torch.*use bitnet\.kernels\.ops"):
        arrays.pack(random_codes(4, 4))
    assert library.path() == "torch"
