"""Training rows of conversations: loss on the answers, several conversations to a row, none of which sees
another.

Rows are packed once, longest conversations first, each into the fullest row that has room. `Batch.segments`
numbers the conversations of a row, and the model attends only within a number (nn/transformer.py); rotary
positions are relative, so a conversation is read as if it began the row. Row r is a pure function of (seed,
r): with a share s of pre-training windows mixed in, floor(r s) of the first r rows are windows, and the
others go through the packed rows, each once an epoch, in an order that is computed (permutation.py).
Not here: reading and encoding conversations (conversations.py).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bitnet.data.conversations import Encoded
from bitnet.data.permutation import permuted
from bitnet.data.stream import Batch, RowSource, concatenate, ids_sha256, shifted, source_facts
from bitnet.errors import ConfigError, DataError


class ConversationRows:
    """An endless sequence of rows: packed conversations, epoch after epoch, with windows of other text in
    between.
    """

    def __init__(
        self,
        conversations: Sequence[Encoded],
        *,
        seq_len: int,
        seed: int,
        pad_id: int,
        name: str,
        other: RowSource | None = None,
        other_share: float = 0.0,
    ) -> None:
        """seq_len: targets per row. other: rows of the same length, for the share `other_share`.

        Conversations longer than a row are left out and counted in `too_long`. Raises DataError where none is
        left.
        """
        if not 0 <= other_share < 1:
            raise ConfigError(f"the share of other text is {other_share}; it must be at least 0 and below 1")
        assert (other is not None) == (other_share > 0), "a share needs its source"
        self.seq_len, self.seed, self.pad_id, self.name = seq_len, seed, pad_id, name
        self.other, self.other_share = other, other_share
        self.conversations = [one for one in conversations if len(one.tokens) <= seq_len + 1]
        self.too_long = len(conversations) - len(self.conversations)
        if not self.conversations:
            raise DataError(f"no conversation of {name} fits a row of {seq_len} tokens; raise --seq-len")
        self.packed = packed([len(one.tokens) for one in self.conversations], seq_len + 1)

    def rows(self, numbers: NDArray[np.int64]) -> Batch:
        """Batch of the rows with these numbers."""
        before = self._others_before(numbers)
        is_other = self._others_before(numbers + 1) > before

        own, count = numbers[~is_other] - before[~is_other], len(self.packed)
        places = permuted(own % count, count, self.seed, own // count)
        chosen = [[self.conversations[index] for index in self.packed[place]] for place in places]
        batch = laid_out(chosen, self.seq_len, self.pad_id)

        if self.other is None or not is_other.any():
            return batch
        return _merged(batch, self.other.rows(before[is_other]), is_other)

    def _others_before(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many of the first `numbers` rows are of the other text."""
        counts: NDArray[np.int64] = np.floor(numbers * self.other_share).astype(np.int64)
        return counts

    def epochs(self, rows: int) -> float:
        """How often a run of so many rows reads each conversation."""
        return (rows - int(self._others_before(np.array([rows]))[0])) / len(self.packed)

    def fingerprint(self) -> dict[str, Any]:
        """What the data is: sizes, hash, and what is mixed in."""
        tokens = np.concatenate([one.tokens for one in self.conversations])
        learned = sum(int(one.learned.sum()) for one in self.conversations)
        return {
            **source_facts(self.name, len(tokens), tokens),
            "conversations_sha256": ids_sha256(tokens),
            "conversations": len(self.conversations),
            "conversations_too_long": self.too_long,
            "answer_tokens": learned,
            "packed_rows": len(self.packed),
            "sampling_strategy": "packed_conversations_once_per_epoch",
            "other_share": self.other_share,
            "other": None if self.other is None else self.other.fingerprint(),
        }


def packed(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Which conversations share a row: longest first, each into the row that it fills best. lengths: each at
    most room.
    """
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (tokens left, row), ascending
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        place = bisect_left(free, (lengths[index], 0))
        if place == len(free):
            rows.append([])
            left, row = room, len(rows) - 1
        else:
            left, row = free.pop(place)
        rows[row].append(index)
        insort(free, (left - lengths[index], row))
    return rows


def laid_out(rows: Sequence[Sequence[Encoded]], seq_len: int, pad_id: int) -> Batch:
    """Rows of conversations one after another, padded; segments number them from 0, padding has the number
    after the last.
    """
    tokens = np.full((len(rows), seq_len + 1), pad_id, dtype=np.int64)
    learned = np.zeros(tokens.shape, dtype=bool)
    segments = np.zeros(tokens.shape, dtype=np.int64)
    for number, row in enumerate(rows):
        start = 0
        for segment, one in enumerate(row):
            here = slice(start, start + len(one.tokens))
            tokens[number, here], learned[number, here] = one.tokens, one.learned
            segments[number, here] = segment
            start = here.stop
        segments[number, start:] = len(row)

    of_inputs = torch.from_numpy(np.ascontiguousarray(segments[:, :-1]))
    return shifted(tokens, learned)._replace(segments=of_inputs)


def single_batches(
    conversations: Sequence[Encoded], *, seq_len: int, batch_size: int, pad_id: int
) -> list[Batch]:
    """One conversation a row, for measuring a loss; nothing stands before it that could leak.

    Those too long are left out. Raises DataError where none is left.
    """
    fitting = [[one] for one in conversations if len(one.tokens) <= seq_len + 1]
    if not fitting:
        raise DataError(
            f"none of {len(conversations)} held-out conversations fits a row of {seq_len} tokens; raise "
            "--seq-len"
        )
    parts = (fitting[first : first + batch_size] for first in range(0, len(fitting), batch_size))
    return [laid_out(part, seq_len, pad_id)._replace(segments=None) for part in parts]


def _merged(own: Batch, other: Batch, is_other: NDArray[np.bool_]) -> Batch:
    """Rows of both in the places that is_other names. Other rows are one segment each."""
    assert own.segments is not None
    one_segment = other._replace(segments=torch.zeros_like(other.input_ids))
    order = np.empty(len(is_other), dtype=np.int64)
    order[~is_other] = np.arange((~is_other).sum())
    order[is_other] = np.arange(is_other.sum()) + (~is_other).sum()
    return concatenate([own, one_segment]).select(torch.from_numpy(order))
