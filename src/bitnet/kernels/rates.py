"""How fast this machine is at what packed models need: reading memory, and ternary products.

A few seconds for both. Not here: what a training update takes (bitnet.cost).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from bitnet.kernels import arrays

MEMORY_BYTES = 1 << 28  # far more than any cache
SHAPE = (3072, 768)  # a product of the 95M shape
ROWS = 512
TIMES = 5


def memory_gb_per_s(threads: int) -> float:
    """Gigabytes (10^9) of memory read in a second by this many threads together, at best."""
    parts = np.array_split(np.ones(MEMORY_BYTES // 8, np.int64), threads)
    with ThreadPoolExecutor(threads) as pool:
        return MEMORY_BYTES / _fastest(lambda: list(pool.map(np.max, parts))) / 1e9


def product_gops(rows: int, threads: int) -> float:
    """Billions of operations in a second of a ternary product (an addition and a multiplication are two)."""
    rng = np.random.default_rng(0)
    packed = arrays.pack(rng.integers(-1, 2, SHAPE, dtype=np.int8))
    x, step = rng.integers(-128, 128, (rows, SHAPE[1]), dtype=np.int8), np.ones(rows, np.float32)
    repeats = max(1, ROWS // rows)

    def products() -> None:
        for _ in range(repeats):
            arrays.product(packed, x, step, threads=threads)

    return 2 * SHAPE[0] * SHAPE[1] * rows * repeats / _fastest(products) / 1e9


def _fastest(call: Callable[[], object]) -> float:
    """Seconds of the fastest of a few calls, after one to warm up."""
    call()
    took = []
    for _ in range(TIMES):
        start = time.perf_counter()
        call()
        took.append(time.perf_counter() - start)
    return min(took)
