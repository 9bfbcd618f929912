"""What counting tokens tells about a text: how surprising it is to someone who knows only single tokens, or
pairs of them.

    unigram   -log p(x_t)           pair   -log p(x_t | x_{t-1}),  p = (n(a, b) + K * p(b)) / (n(a) + K)

The pair model falls back to single tokens where a pair was not seen (Dirichlet smoothing, K = 2). Text has
order, so pairs must surprise less than single tokens; tokens in random order, or read by another tokenizer,
lose exactly that. A trained transformer has to beat both.
Not here: any model with weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bitnet.data.stream import Batch

WEIGHT = 2.0  # pseudo-counts of the fall-back; ours
Rows = list[NDArray[np.int64]]


def rows_of(batch: Batch, pad_id: int) -> Rows:
    """The tokens of each row, the last target included, without the padding at its end."""
    tokens = np.concatenate([batch.input_ids.numpy(), batch.targets.numpy()[:, -1:]], axis=1)
    return [_trimmed(row, pad_id) for row in tokens]


def rows_in(batches: Iterable[Batch], pad_id: int) -> Rows:
    """The same for the rows of several batches."""
    return [row for batch in batches for row in rows_of(batch, pad_id)]


def _trimmed(row: NDArray[np.int64], pad_id: int) -> NDArray[np.int64]:
    real = np.nonzero(row != pad_id)[0]
    return row[: real[-1] + 1] if len(real) else row[:0]


@dataclass(frozen=True)
class Counts:
    """single: (V,); pairs: sorted keys a * V + b with their counts; first: (V,) how often a token is followed
    by any.
    """

    vocabulary: int
    single: NDArray[np.float64]
    keys: NDArray[np.int64]
    pairs: NDArray[np.float64]
    first: NDArray[np.float64]

    @classmethod
    def of(cls, rows: Rows, vocabulary: int) -> Counts:
        """Count tokens and neighbours."""
        flat = np.concatenate(rows)
        joined = np.concatenate([row[:-1] * vocabulary + row[1:] for row in rows if len(row) > 1])
        keys, counts = np.unique(joined, return_counts=True)
        single = np.bincount(flat, minlength=vocabulary).astype(np.float64)
        first = np.bincount(joined // vocabulary, minlength=vocabulary).astype(np.float64)
        return cls(vocabulary, single, keys, counts.astype(np.float64), first)

    def surprise(self, rows: Rows) -> tuple[float, float]:
        """Mean nats per token of the rows' second and later tokens: by single tokens, and by pairs."""
        before = np.concatenate([row[:-1] for row in rows])
        after = np.concatenate([row[1:] for row in rows])
        if not len(after):
            return float("nan"), float("nan")
        alone = (self.single + 1) / (self.single.sum() + self.vocabulary)
        key = before * self.vocabulary + after
        place = np.minimum(np.searchsorted(self.keys, key), len(self.keys) - 1)
        seen = np.where(self.keys[place] == key, self.pairs[place], 0.0)
        together = (seen + WEIGHT * alone[after]) / (self.first[before] + WEIGHT)
        return float(-np.log(alone[after]).mean()), float(-np.log(together).mean())


def shingles(rows: Rows, length: int) -> NDArray[np.uint64]:
    """A hash of every stretch of `length` tokens, all rows after another."""
    multiplier = np.uint64(0x9E3779B97F4A7C15)
    found = []
    for row in rows:
        if len(row) < length:
            continue
        windows = np.lib.stride_tricks.sliding_window_view(row.astype(np.uint64) + np.uint64(1), length)
        state = np.zeros(len(windows), dtype=np.uint64)
        with np.errstate(over="ignore"):
            for column in range(length):
                state = (state ^ windows[:, column]) * multiplier
                state ^= state >> np.uint64(29)
        found.append(state)
    return np.concatenate(found) if found else np.empty(0, dtype=np.uint64)


def examples(rows: Rows, end: int) -> set[tuple[int, ...]]:
    """The whole examples in rows: what stands between end marks, the mark included. What was cut at a row's
    end is left out.
    """
    found: set[tuple[int, ...]] = set()
    for row in rows:
        stops = np.nonzero(row == end)[0] + 1
        for begin, stop in zip([0, *stops[:-1]], stops, strict=False):
            found.add(tuple(row[begin:stop].tolist()))
    return found
