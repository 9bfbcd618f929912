"""What keeps an answer out of the data, with the reason by name. Nothing is dropped without being counted.

    empty             no letter in it
    cut_off           the teacher reached its limit of length, or the text ends inside a sentence
    breaks_character  it talks to the character instead of as it, speaks for the other side, or says that
                      it is a model
    repeats           the same words as an earlier answer
    begins_alike      the same first eight words as an earlier answer; only while another attempt is left

Not here: whether an answer is in the voice (score.py), or right.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from bitnet.voice.score import breaks_found
from bitnet.voice.teachers import Reply
from bitnet.voice.topics import same
from bitnet.voice.voices import Voice

REASONS = ("empty", "cut_off", "breaks_character", "repeats", "begins_alike")
FIRST_WORDS = 8
MODEL_TALK = re.compile(
    r"\b(?:as an? (?:ai|artificial|language|virtual)|language model|ai (?:assistant|model)"
    r"|(?:i am|i'm|i’m) (?:just )?an? (?:ai|assistant|model)|i (?:cannot|can't|can’t) "
    r"(?:pretend|role-?play)|the user|system prompt)\b",
    re.IGNORECASE,
)
GREETING = (
    r"(?:hi|hello|hey|dear|oh|wow|well|aww?|ah|good|thanks?|thank "
    r"you|sorry|yes|no|ok|okay|so|come|listen|look)(?: there| you| boy| girl)?"
)
MYSELF = r"(?:me|i|yours|love|dog|pup|friend|name|myself|am|paws|woofs|barks|called|sincerely|truly)"


def cleaned(text: str, voice: Voice) -> str:
    """An answer without what models like to put around it: its own label, quotation marks, spaces."""
    text = re.sub(
        rf"\A\s*\**{re.escape(voice.name)}\**\s*:\**", "", text.strip(), flags=re.IGNORECASE
    ).strip()
    if (
        len(text) > 1
        and (text[0], text[-1]) in {('"', '"'), ("“", "”")}
        and not any(mark in text[1:-1] for mark in '"“”')
    ):
        text = text[1:-1].strip()
    return text


class Gates:
    """Remembers the answers that were kept, to know a repeat."""

    def __init__(self, voice: Voice) -> None:
        self.voice = voice
        self._kept: set[str] = set()
        self._beginnings: set[str] = set()

    def refuses(self, reply: Reply, *, last_attempt: bool) -> str | None:
        """Why this answer is not taken, or None."""
        reason = broken(reply, self.voice)
        if reason is not None:
            return reason
        words = same(reply.text)
        if words in self._kept:
            return "repeats"
        return "begins_alike" if not last_attempt and first_words(words) in self._beginnings else None

    def keep(self, text: str) -> None:
        """Remember an answer."""
        words = same(text)
        self._kept.add(words)
        self._beginnings.add(first_words(words))


def broken(reply: Reply, voice: Voice) -> str | None:
    """What is wrong with one answer for itself, or None."""
    text = reply.text
    if not any(letter.isalpha() for letter in text):
        return "empty"
    if not reply.ended or text[-1].isalnum() or text[-1] in ",;:-–—(/&":
        return "cut_off"
    out_of_character = (
        MODEL_TALK.search(text) or breaks_found(text, voice) or _addressed(voice.name).search(text)
    )
    return "breaks_character" if out_of_character else None


def first_words(text: str) -> str:
    """The beginning by which answers are told apart."""
    return " ".join(text.split()[:FIRST_WORDS])


@lru_cache(maxsize=16)
def _addressed(name: str) -> re.Pattern[str]:
    """The character's name as somebody else says it: first in a sentence, or last, set off by commas; or a
    change of sides.
    """
    name = re.escape(name)
    parts: Sequence[str] = (
        rf"(?:\A|[.!?]\s+)(?:{GREETING}[,!]?\s+)*{name}\s*[,!?]",  # Hey BitNut, ...
        rf"(?<!\w)(?!{MYSELF},)\w+,\s+{name}\s*[.!?,]",  # ... a lovely idea, BitNut!
        rf"\b(?:thank you|thanks|sorry|hello|hi|hey),?\s+{name}\b",
        rf"(?:\A|\s)(?:human|user|{name})\s*:",
    )
    return re.compile("|".join(parts), re.IGNORECASE)
