"""A conversation with a model: its history, the end of an answer, and room for the next one.

An answer ends at the end-of-text id, or where the model begins to write somebody's next turn (`human:` or
its own label). That label is never shown: text that may be its beginning is held back until that is decided.
Where the conversation outgrows the model's context, the oldest turns are left out of what the model reads;
the caller is told how many. Not here: the terminal (cli/chat.py), the template itself (text/chat.py).
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field

from bitnet.errors import DataError
from bitnet.generate.decode import ReadText, stream
from bitnet.generate.decoder import Decoder
from bitnet.generate.sampling import Sampling
from bitnet.text.chat import HUMAN, SPEAKER, Turn, question_ids, system_line, turn_ids
from bitnet.text.tokenizer import Tokenizer

INCOMPLETE = "\ufffd"  # how a character of several tokens is decoded before its last one


@dataclass
class ChatSession:
    """One conversation. speaker: the name before the answers; system: a text before the first turn, or
    none.
    """

    model: Decoder
    tokenizer: Tokenizer
    speaker: str = SPEAKER
    system: str = ""
    max_new_tokens: int = 256
    turns: list[Turn] = field(default_factory=list)
    forgotten: int = 0
    """How many of the oldest turns the last answer was made without."""
    ended: bool = True
    """Whether the last answer ended by itself, not at the limit of length."""
    _memory: ReadText = field(default_factory=ReadText)

    def reply(self, text: str, sampling: Sampling) -> Generator[str, None, None]:
        """The pieces of an answer as they come. Both sides are then in `turns`, even if the caller stops
        early.

        Raises DataError where the text alone does not fit the context.
        """
        ids, self.forgotten = self._prompt(text)
        shown = ""
        try:
            for piece in self._pieces(ids, sampling):
                shown += piece
                yield piece
        finally:
            self.turns.append(Turn(text, shown))

    def clear(self) -> None:
        """Forget the conversation, keep the system text."""
        self.turns.clear()
        self.forgotten = 0

    def _prompt(self, text: str) -> tuple[list[int], int]:
        """The ids that the model reads: as many last turns as leave room for an answer, and how many do not
        fit.
        """
        context = self.model.config.max_seq_length
        begin = self.tokenizer.encode(system_line(self.system)) if self.system else []
        end = question_ids(text, self.tokenizer, self.speaker)
        room = context - len(begin) - len(end)
        if room < 1:
            what = "the message" if not begin else "the message with the system text"
            raise DataError(
                f"{what} has {len(begin) + len(end)} tokens, the model reads {context} with its answer; "
                "shorten it"
            )

        # The newest turns first, as long as there is room for them and for an answer.
        room -= min(self.max_new_tokens, context // 2)
        kept: list[list[int]] = []
        for turn in reversed(self.turns):
            before, said = turn_ids(turn, self.tokenizer, self.speaker)
            room -= len(before) + len(said)
            if room < 0:
                break
            kept.append(before + said)

        middle = [token for turn in reversed(kept) for token in turn]
        return begin + middle + end, len(self.turns) - len(kept)

    def _pieces(self, ids: list[int], sampling: Sampling) -> Iterator[str]:
        """What may be shown of an answer, as soon as it may."""
        labels = Labels(HUMAN, self.speaker)
        new: list[int] = []
        shown, text = 0, ""
        self.ended = False
        said = stream(
            self.model, ids, max_new_tokens=self.max_new_tokens, sampling=sampling, memory=self._memory
        )
        for chosen, _ in said:
            if chosen == self.tokenizer.eos_id:
                self.ended = True
                break
            new.append(chosen)
            # All of it is decoded again: the text of a token may depend on the one before.
            text = self.tokenizer.decode(new).lstrip()
            end = labels.safe(text)
            if not text.endswith(INCOMPLETE) and end > shown:
                yield text[shown:end]
                shown = end
            if labels.found(text) is not None:
                self.ended = True
                return

        # What was held back was not a label after all.
        if self.ended and text.rstrip()[shown:]:
            yield text.rstrip()[shown:]


class Labels:
    """Finds where an answer ends because somebody's next turn begins, and what could still become that."""

    def __init__(self, *names: str) -> None:
        self._labels = [f"{name}:" for name in names]
        self._found = re.compile(rf"\s*(?<!\w)(?:{'|'.join(map(re.escape, self._labels))})", re.IGNORECASE)

    def found(self, text: str) -> int | None:
        """Where the first label begins, the space before it included."""
        match = self._found.search(text)
        return match.start() if match else None

    def safe(self, text: str) -> int:
        """How much of a text cannot be part of a label, whatever follows. Space at the end waits with it."""
        end = self.found(text)
        if end is not None:
            return end
        lower = text.lower()
        longest = max(len(label) for label in self._labels)
        held = next((n for n in range(min(longest, len(text)), 0, -1) if self._begins_a_label(lower, n)), 0)
        return len(text[: len(text) - held].rstrip())

    def _begins_a_label(self, text: str, count: int) -> bool:
        """Whether the last `count` letters, as a word of their own, begin a label."""
        inside_a_word = len(text) > count and (text[-count - 1].isalnum() or text[-count - 1] == "_")
        return not inside_a_word and any(label.lower().startswith(text[-count:]) for label in self._labels)
