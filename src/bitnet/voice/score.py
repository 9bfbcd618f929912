"""Judge an answer: is it in the voice, and may it enter the data?

Each sign of a voice file is a regular expression with points, searched between word boundaries in any case.
A sign counts once, however often it occurs, and its points may be negative. A text is in the voice if its
points reach the file's `in_voice_at` and none of the file's `breaks` occurs. For the built-in dog this takes
a noise, a part of the body or something that a dog does, and squirrels or acorns beside it. A text about dogs
from outside (breeds, species, "my dog") loses points. The score does not understand sentences: one that has
the words without the meaning passes. tests/voice/labelled.jsonl has lines labelled by hand, on which its
mistakes are counted.

The gates refuse an answer for one of these reasons, and every refusal is counted:

    empty             no letter in it
    cut_off           the teacher reached its limit of length, or the text ends inside a sentence
    breaks_character  it talks to the character instead of as it, speaks for the other side, or says that
                      it is a model
    repeats           the same words as an earlier answer
    begins_alike      the same first eight words as an earlier answer; only while another attempt is left

The gates do not ask whether an answer is in the voice, or true.
"""

from __future__ import annotations

import re
from functools import lru_cache

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
    r"(?:hi|hello|hey|dear|oh|wow|well|aww?|ah|good|thanks?|thank you|sorry|yes|no|ok|okay|so|come|listen"
    r"|look)(?: there| you| boy| girl)?"
)
MYSELF = r"(?:me|i|yours|love|dog|pup|friend|name|myself|am|paws|woofs|barks|called|sincerely|truly)"


def signs_found(text: str, voice: Voice) -> dict[str, float]:
    """The signs that occur in a text, with their points."""
    return {sign: points for sign, points in voice.signs.items() if _pattern(sign).search(text)}


def voice_score(text: str, voice: Voice) -> float:
    """The points of a text. Higher is more in the voice."""
    return sum(signs_found(text, voice).values())


def breaks_found(text: str, voice: Voice) -> list[str]:
    """The voice's patterns of falling out of character that occur in a text."""
    return [broken for broken in voice.breaks if _pattern(broken).search(text)]


def in_voice(text: str, voice: Voice) -> bool:
    """Whether a text is in the voice. A voice without signs recognises no text."""
    return (
        bool(voice.signs) and voice_score(text, voice) >= voice.in_voice_at and not breaks_found(text, voice)
    )


@lru_cache(maxsize=1024)
def _pattern(source: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w)(?:{source})(?!\w)", re.IGNORECASE | re.MULTILINE)


class Gates:
    """The gates of one voice. They remember the answers kept so far, to recognise a repeat."""

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
    """What is wrong with an answer whatever the others are, or None."""
    text = reply.text
    if not any(letter.isalpha() for letter in text):
        return "empty"
    if not reply.ended or text[-1].isalnum() or text[-1] in ",;:-–—(/&":
        return "cut_off"
    out_of_character = (
        MODEL_TALK.search(text) or breaks_found(text, voice) or _addressed(voice.name).search(text)
    )
    return "breaks_character" if out_of_character else None


def cleaned(text: str, voice: Voice) -> str:
    """An answer without what models like to put around it: a label, quotation marks, spaces."""
    label = rf"\A\s*\**{re.escape(voice.name)}\**\s*:\**"
    text = re.sub(label, "", text.strip(), flags=re.IGNORECASE).strip()
    quoted = len(text) > 1 and (text[0], text[-1]) in {('"', '"'), ("“", "”")}
    if quoted and not any(mark in text[1:-1] for mark in '"“”'):
        text = text[1:-1].strip()
    return text


def first_words(text: str) -> str:
    """The beginning of a text, by which answers are told apart."""
    return " ".join(text.split()[:FIRST_WORDS])


@lru_cache(maxsize=16)
def _addressed(name: str) -> re.Pattern[str]:
    """Matches the character's name as somebody else says it, and the label of another speaker."""
    name = re.escape(name)
    parts = (
        rf"(?:\A|[.!?]\s+)(?:{GREETING}[,!]?\s+)*{name}\s*[,!?]",  # Hey BitNut, ...
        rf"(?<!\w)(?!{MYSELF},)\w+,\s+{name}\s*[.!?,]",  # ... a lovely idea, BitNut!
        rf"\b(?:thank you|thanks|sorry|hello|hi|hey),?\s+{name}\b",
        rf"(?:\A|\s)(?:human|user|{name})\s*:",
    )
    return re.compile("|".join(parts), re.IGNORECASE)
