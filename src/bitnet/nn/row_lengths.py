"""How far each of some texts has been read, and how far it may be: what all rows of texts have in common.

Not here: their keys and values (cached_rows.py, and engine/decoder.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bitnet.errors import DataError

Array = npt.NDArray[Any]


class RowLengths:
    """lengths: int64 (count,), the tokens that each row has read; capacity: of every row."""

    def __init__(self, count: int, capacity: int) -> None:
        self.lengths, self.capacity = np.zeros(count, np.int64), capacity

    def room_for(self, texts: Mapping[int, Sequence[int]]) -> tuple[Array, Array]:
        """The rows and the number of new ids of each text, int64 (len(texts),). Raises DataError for a text
        that is empty or does not fit.
        """
        counts = np.array([len(ids) for ids in texts.values()], np.int64)
        chosen = np.fromiter(texts, np.int64, len(texts))
        if not len(counts) or counts.min() < 1:
            raise DataError("a text to read is empty; give at least one token")
        if chosen.min() < 0 or chosen.max() >= len(self.lengths):
            raise ValueError(f"rows {chosen.tolist()} of {len(self.lengths)}")
        ends = self.lengths[chosen] + counts
        if (ends > self.capacity).any():
            raise DataError(
                f"{int(ends.max())} tokens do not fit the {self.capacity} that there is room for; give a "
                "shorter text"
            )
        return chosen, counts

    def take_back(self, row: int, length: int) -> None:
        """Forget what a row has read after its first `length` ids; 0 frees it for another text."""
        assert 0 <= length <= self.lengths[row], (
            f"row {row} has read {self.lengths[row]} tokens, not {length}"
        )
        self.lengths[row] = length
