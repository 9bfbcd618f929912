"""A computed permutation is one, and looks shuffled."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bitnet.data.permutation import permuted


@given(st.integers(1, 3000), st.integers(0, 2**63 - 1), st.integers(0, 10**6))
def test_permutation_hits_every_number_once(n: int, seed: int, epoch: int) -> None:
    hit = permuted(np.arange(n), n, seed, np.full(n, epoch))
    assert sorted(hit.tolist()) == list(range(n))


def test_permutation_looks_shuffled_and_differs_by_seed_and_epoch() -> None:
    n = 10_000
    orders = [permuted(np.arange(n), n, seed, np.full(n, epoch)) for seed, epoch in ((1, 0), (1, 1), (2, 0))]
    for order in orders:
        assert abs(np.corrcoef(np.arange(n), order)[0, 1]) < 0.03
        assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.03
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert (orders[first] == orders[second]).mean() < 0.001
