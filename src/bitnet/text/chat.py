r"""The form of a conversation: `human: {user_input}\nbitnut:` and the answer, ended by the end-of-text id.

    human: What is rain?\nbitnut: Woof! Squirrels pour it.</s>human: Really?\nbitnut: Trust my nose.</s>

One string each for what comes before an answer, and one for the answer; the end-of-text id stands between
turns, so that where a turn ends is learned like any token. A system text, where there is one, is a line
before the first turn. The name before the answers is the voice's. Not here: data (data/conversations.py),
talking (generate/session.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from bitnet.text.tokenizer import Tokenizer

HUMAN = "human"
SPEAKER = "bitnut"


class Turn(NamedTuple):
    """What a person said, and what was answered."""

    human: str
    answer: str


def question(text: str, speaker: str = SPEAKER) -> str:
    """What stands before an answer."""
    return f"{HUMAN}: {text}\n{speaker}:"


def answer(text: str) -> str:
    """An answer as it follows the colon: its first word has a space before it, like words inside a text."""
    return f" {text}"


def system_line(text: str) -> str:
    """What stands before the first turn."""
    return f"system: {text}\n"


def question_ids(text: str, tokenizer: Tokenizer, speaker: str) -> list[int]:
    """Ids before an answer."""
    return tokenizer.encode(question(text, speaker))


def turn_ids(turn: Turn, tokenizer: Tokenizer, speaker: str) -> tuple[list[int], list[int]]:
    """Ids of both sides of a turn; the answer's end with the end-of-text id."""
    return question_ids(turn.human, tokenizer, speaker), [
        *tokenizer.encode(answer(turn.answer)),
        tokenizer.eos_id,
    ]


def conversation_ids(
    turns: Sequence[Turn], tokenizer: Tokenizer, speaker: str
) -> tuple[list[int], list[bool]]:
    """Ids of a conversation, and which of them are to be learned: the answers with their ends."""
    ids: list[int] = []
    learned: list[bool] = []
    for turn in turns:
        before, said = turn_ids(turn, tokenizer, speaker)
        ids += before + said
        learned += [False] * len(before) + [True] * len(said)
    return ids, learned
