"""A permutation of 0..n-1 that is computed, not stored: element i costs the same at the start and at the end.

A Feistel network (Luby and Rackoff, 1988) is a bijection on 2b-bit numbers whatever its round function is;
numbers that land outside 0..n-1 are put through again until they land inside ("cycle walking", Black and
Rogaway, 2002), which keeps it a bijection. The key is a hash of (seed, epoch). Not here: cryptography; four
rounds of a mixer are for shuffling.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bitnet.data.generated import mix

ROUNDS = 4


def permuted(numbers: NDArray[np.int64], n: int, seed: int, epochs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each number stands in the permutation of its epoch. numbers: (B,), each in 0..n-1; epochs:
    (B,).
    """
    half = max((n - 1).bit_length() + 1, 2) // 2
    keys = mix(mix(np.full(len(epochs), seed, dtype=np.uint64)) ^ epochs.astype(np.uint64))
    values = _network(numbers.astype(np.uint64), keys, half)
    while (outside := values >= n).any():
        values[outside] = _network(values[outside], keys[outside], half)
    return values.astype(np.int64)


def _network(values: NDArray[np.uint64], keys: NDArray[np.uint64], half: int) -> NDArray[np.uint64]:
    """One pass over numbers of 2 * half bits."""
    bits, low = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = values >> bits, values & low
    for number in range(ROUNDS):
        left, right = right, left ^ (mix(right ^ keys ^ np.uint64(number << 60)) & low)
    return (left << bits) | right
