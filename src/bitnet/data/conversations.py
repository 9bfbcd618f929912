"""Conversations from a file, and their ids.

A file of JSON lines has one conversation a line, either `prompt` and `answer`, or `messages` (a list of
`role` user and assistant in turn, and `content`). `held_out: true` keeps it from training. A line that cannot
be read, or that has no answer, is counted and left out; above 5% the file is refused.
Not here: training rows (conversation_rows.py), who made the conversations (voice/), and the form of a turn
(text/chat.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bitnet.data.json_lines import held_out_problem, read_json_lines
from bitnet.errors import DataError
from bitnet.files import sha256
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
    train, held_out = ([one for one in read if one.held_out is side] for side in (False, True))
    if not train:
        raise DataError(
            f"{file} has no conversation to train on, all {len(read)} are held out; give more topics"
        )
    return Conversations(str(path), sha256(file), train, held_out, found.broken, found.first_broken)


def _problem(row: dict[str, Any]) -> str | None:
    """What keeps an object from being a conversation, or None."""
    if (problem := held_out_problem(row)) is not None:
        return problem
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
