"""Conversations to training rows: loss on the answers, several conversations to a row, none of which sees
another.

A file of JSON lines has one conversation a line, either `prompt` and `answer`, or `messages` (a list of
`role` user and assistant in turn, and `content`). `held_out: true` keeps it from training. A line that cannot
be read, or that has no answer, is counted and left out; above 5% the file is refused.

Rows are packed once, longest conversations first, each into the fullest row that has room. `Batch.segments`
numbers the conversations of a row, and the model attends only within a number (nn/transformer.py); rotary
positions are relative, so a conversation is read as if it began the row. Row r is a pure function of (seed,
r): with a share s of pre-training windows mixed in, floor(r s) of the first r rows are windows, and the
others go through the packed rows, each once an epoch, in an order that is computed (permutation.py).
Not here: who made the conversations (voice/), and the form of a turn (text/chat.py).
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from bitnet.data.json_lines import read_json_lines
from bitnet.data.permutation import permuted
from bitnet.data.stream import Batch, RowSource, concatenate, shifted
from bitnet.errors import ConfigError, DataError
from bitnet.files import sha256, sha256_of
from bitnet.text.chat import Turn, conversation_ids
from bitnet.text.tokenizer import Tokenizer

FILE = "answers.jsonl"
ROLES = ("user", "assistant")


class Conversation(NamedTuple):
    """topic: what it is about, for judging; empty where the file does not say."""

    turns: tuple[Turn, ...]
    held_out: bool = False
    topic: str = ""


class Conversations(NamedTuple):
    """What a file held. broken: lines left out; first_broken: where and why."""

    name: str
    sha256: str
    train: list[Conversation]
    held_out: list[Conversation]
    broken: int
    first_broken: str | None


def read_conversations(path: Path) -> Conversations:
    """The conversations of a file, or of a folder that `bitnet voice answers` wrote."""
    file = path / FILE if path.is_dir() else path
    found = read_json_lines(file, _problem)
    read = [
        Conversation(tuple(_turns(row)), bool(row.get("held_out")), str(row.get("topic", "")))
        for row in found.rows
    ]
    sides = ([one for one in read if one.held_out is side] for side in (False, True))
    train, held_out = sides
    if not train:
        raise DataError(
            f"{file} has no conversation to train on, all {len(read)} are held out; give more topics"
        )
    return Conversations(str(path), sha256(file), train, held_out, found.broken, found.first_broken)


def _problem(row: dict[str, Any]) -> str | None:
    """What keeps an object from being a conversation, or None."""
    if not isinstance(row.get("held_out", False), bool):
        return "held_out is neither true nor false"
    try:
        turns = _turns(row)
    except ValueError as error:
        return str(error)
    if not turns or not all(turn.answer.strip() for turn in turns):
        return "a conversation without an answer"
    return None if all(turn.human.strip() for turn in turns) else "nothing is asked"


def _turns(row: dict[str, Any]) -> list[Turn]:
    """Both sides in turn; a question at the end has an empty answer. Raises ValueError for another form."""
    messages = row.get("messages")
    if messages is None:
        messages = [
            {"role": "user", "content": row.get("prompt")},
            {"role": "assistant", "content": row.get("answer", "")},
        ]
    if not isinstance(messages, list) or not all(
        isinstance(one, dict) and isinstance(one.get("content"), str) for one in messages
    ):
        raise ValueError("neither prompt and answer nor messages with role and content")
    if any(one.get("role") != ROLES[number % 2] for number, one in enumerate(messages)):
        raise ValueError("messages are not user and assistant in turn")
    texts = [one["content"].strip() for one in messages] + ([""] if len(messages) % 2 else [])
    return [Turn(human, answer) for human, answer in zip(texts[::2], texts[1::2], strict=True)]


def chained(conversations: Sequence[Conversation], share: float) -> list[Conversation]:
    """A share of conversations with the next one on the same topic as further turns, so that history is
    learned too.

    Each is used once; topics keep their order. share: 0 to 1, of the conversations that begin one here.
    """
    topics: dict[str, list[Conversation]] = {}
    for one in conversations:
        topics.setdefault(one.topic, []).append(one)
    made: list[Conversation] = []
    for members in topics.values():
        waiting = iter(members)
        for number, one in enumerate(waiting):
            wanted = math.floor((number + 1) * share) > math.floor(number * share)
            following = next(waiting, None) if wanted else None
            made.append(one if following is None else one._replace(turns=one.turns + following.turns))
    return made


class Encoded(NamedTuple):
    """One conversation as ids. tokens, learned: (n,)."""

    tokens: NDArray[np.int64]
    learned: NDArray[np.bool_]


def encoded(conversations: Sequence[Conversation], tokenizer: Tokenizer, speaker: str) -> list[Encoded]:
    """The ids of conversations; learned are the answers with their ends."""
    pairs = (conversation_ids(one.turns, tokenizer, speaker) for one in conversations)
    return [Encoded(np.array(ids, dtype=np.int64), np.array(learned, dtype=bool)) for ids, learned in pairs]


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
        own = numbers[~is_other] - before[~is_other]
        count = len(self.packed)
        batch = self._laid_out(
            [self.packed[place] for place in permuted(own % count, count, self.seed, own // count)]
        )
        if self.other is None or not is_other.any():
            return batch
        return _merged(batch, self.other.rows(before[is_other]), is_other)

    def _others_before(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many of the first `numbers` rows are of the other text."""
        counts: NDArray[np.int64] = np.floor(numbers * self.other_share).astype(np.int64)
        return counts

    def _laid_out(self, rows: Sequence[Sequence[int]]) -> Batch:
        return laid_out(
            [[self.conversations[index] for index in row] for row in rows], self.seq_len, self.pad_id
        )

    def epochs(self, rows: int) -> float:
        """How often a run of so many rows reads each conversation."""
        return (rows - int(self._others_before(np.array([rows]))[0])) / len(self.packed)

    def fingerprint(self) -> dict[str, Any]:
        """What the data is: sizes, hash, and what is mixed in."""
        tokens = np.concatenate([one.tokens for one in self.conversations])
        learned = sum(int(one.learned.sum()) for one in self.conversations)
        return {
            "dataset_name": self.name,
            "dataset_size_tokens": len(tokens),
            "hf_revision": None,
            "first_1000_token_ids_sha256": sha256_of(tokens[:1000].astype("<i8").tobytes()),
            "conversations_sha256": sha256_of(tokens.astype("<i8").tobytes()),
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
        place = 0
        for segment, one in enumerate(row):
            end = place + len(one.tokens)
            tokens[number, place:end], learned[number, place:end], segments[number, place:end] = (
                one.tokens,
                one.learned,
                segment,
            )
            place = end
        segments[number, place:] = len(row)
    return shifted(tokens, learned)._replace(
        segments=torch.from_numpy(np.ascontiguousarray(segments[:, :-1]))
    )


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
