"""Counting tokens: what order is worth, and which stretches two texts share."""

from __future__ import annotations

import numpy as np
import torch

from bitnet.data.stream import Batch
from bitnet.diagnose.ngrams import Counts, examples, rows_of, shingles

ALPHABET = np.tile(np.arange(4, 12), 40)


def test_pairs_know_what_single_tokens_do_not() -> None:
    """In 4 5 6 ... 11 4 5 ... the next token is certain to one who knows pairs, and one of eight to one who
    does not.
    """
    alone, pairs = Counts.of([ALPHABET], 12).surprise([ALPHABET])
    assert abs(alone - np.log(8)) < 0.05
    assert pairs < 0.15


def test_shuffled_tokens_gain_nothing() -> None:
    random = np.random.default_rng(0)
    rows = [random.permutation(ALPHABET) for _ in range(20)]
    alone, pairs = Counts.of(rows[:15], 12).surprise(rows[15:])
    assert abs(1 - pairs / alone) < 0.02


def test_shingles_find_a_stretch_wherever_it_stands() -> None:
    random = np.random.default_rng(1)
    text = random.integers(4, 500, 100)
    assert np.isin(shingles([text[30:60]], 24), shingles([text], 24)).all()
    assert not np.isin(shingles([random.integers(4, 500, 60)], 24), shingles([text], 24)).any()


def test_examples_are_whole() -> None:
    """A cut example at the end of a row is left out, so that it cannot look like a shorter one."""
    assert examples([np.array([5, 6, 9, 7, 9, 8])], end=9) == {(5, 6, 9), (7, 9)}


def test_rows_lose_their_padding_and_keep_the_last_target() -> None:
    batch = Batch(
        torch.tensor([[5, 6, 0, 0]]),
        torch.tensor([[6, 0, 0, 0]]),
        torch.tensor([[True, False, False, False]]),
    )
    assert [row.tolist() for row in rows_of(batch, 0)] == [[5, 6]]
