"""Pairs of answers to training rows: the one to prefer, then the other, to the same prompt.

A file of JSON lines has one pair a line: `prompt`, `chosen`, `rejected`, and `held_out: true` for those kept
from training (`bitnet voice answers --pairs` writes pairs.jsonl). Row 2p is the chosen side of a pair and row
2p + 1 its rejected side, where the pairs of an epoch come in a computed order (permutation.py); so
row r is a pure function of (seed, r), and a batch with an even number of rows holds whole pairs. Each row
also carries `Batch.reference`, which its maker supplies. Not here: the loss (train/objective.py), the form of
a turn (text/chat.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bitnet.data.conversation_rows import laid_out
from bitnet.data.conversations import Conversation, Encoded, encoded
from bitnet.data.json_lines import held_out_problem, read_json_lines
from bitnet.data.permutation import permuted
from bitnet.data.stream import Batch, ids_sha256, source_facts
from bitnet.errors import DataError, NotFoundError
from bitnet.text.chat import Turn
from bitnet.text.tokenizer import Tokenizer

FILE = "pairs.jsonl"


class Pair(NamedTuple):
    """Two answers to a prompt; the first is to be preferred."""

    prompt: str
    chosen: str
    rejected: str


class Pairs(NamedTuple):
    """What a file held. broken: lines left out."""

    name: str
    train: list[Pair]
    held_out: list[Pair]
    broken: int


def read_pairs(path: Path) -> Pairs:
    """The pairs of a file, or of a folder that `bitnet voice answers --pairs` wrote. Above 5% broken lines it
    is refused.
    """
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise NotFoundError(
            f"there is no {file}; make the pairs with: bitnet voice answers --pairs, and a new --out"
        )
    found = read_json_lines(file, _problem)
    sides: tuple[list[Pair], list[Pair]] = ([], [])
    for row in found.rows:
        sides[bool(row.get("held_out"))].append(Pair(*(row[key].strip() for key in Pair._fields)))
    if not sides[0]:
        raise DataError(f"{file} has no pair to train on, all {len(sides[1])} are held out; give more topics")
    return Pairs(str(path), *sides, found.broken)


def _problem(row: dict[str, Any]) -> str | None:
    for key in Pair._fields:
        if not isinstance(row.get(key), str) or not row[key].strip():
            return f"{key} is not a text"
    if row["chosen"].strip() == row["rejected"].strip():
        return "chosen and rejected are the same"
    return held_out_problem(row)


def encoded_pairs(pairs: Sequence[Pair], tokenizer: Tokenizer, speaker: str) -> list[tuple[Encoded, Encoded]]:
    """Both sides of each pair as ids; scored are the answers with their ends."""
    chosen = [Conversation((Turn(pair.prompt, pair.chosen),)) for pair in pairs]
    rejected = [Conversation((Turn(pair.prompt, pair.rejected),)) for pair in pairs]
    both = (encoded(side, tokenizer, speaker) for side in (chosen, rejected))
    return list(zip(*both, strict=True))


class PairRows:
    """An endless sequence of rows, two for each pair, epoch after epoch."""

    def __init__(
        self,
        pairs: Sequence[tuple[Encoded, Encoded]],
        *,
        seq_len: int,
        seed: int,
        pad_id: int,
        name: str,
        reference: Callable[[Batch], Tensor],
    ) -> None:
        """reference: `Batch.reference` of rows, (B,). Pairs with a side longer than a row are left out and
        counted in `too_long`.

        Raises DataError where none is left.
        """
        self.seq_len, self.seed, self.pad_id, self.name = seq_len, seed, pad_id, name
        self.reference = reference
        self.pairs = [pair for pair in pairs if max(len(side.tokens) for side in pair) <= seq_len + 1]
        self.too_long = len(pairs) - len(self.pairs)
        if not self.pairs:
            raise DataError(f"no pair of {name} fits a row of {seq_len} tokens; raise --seq-len")

    def rows(self, numbers: NDArray[np.int64]) -> Batch:
        """Batch of the rows with these numbers."""
        count, pair = len(self.pairs), numbers // 2
        places = permuted(pair % count, count, self.seed, pair // count)
        sides = [self.pairs[place][side] for place, side in zip(places, numbers % 2, strict=True)]
        return self._with_reference(sides)

    def in_order(self, batch_size: int) -> list[Batch]:
        """Every pair once, as batches of at most so many rows."""
        sides = [side for pair in self.pairs for side in pair]
        starts = range(0, len(sides), batch_size)
        return [self._with_reference(sides[first : first + batch_size]) for first in starts]

    def _with_reference(self, sides: Sequence[Encoded]) -> Batch:
        batch = laid_out([[side] for side in sides], self.seq_len, self.pad_id)._replace(segments=None)
        return batch._replace(reference=self.reference(batch).cpu())

    def epochs(self, rows: int) -> float:
        """How often a run of so many rows reads each pair."""
        return rows / 2 / len(self.pairs)

    def fingerprint(self) -> dict[str, Any]:
        """What the data is: sizes and hashes."""
        tokens = np.concatenate([side.tokens for pair in self.pairs for side in pair])
        return {
            **source_facts(self.name, len(tokens), tokens),
            "pairs_sha256": ids_sha256(tokens),
            "pairs": len(self.pairs),
            "pairs_too_long": self.too_long,
            "sampling_strategy": "pairs_once_per_epoch",
        }
