"""Is a text in the voice? A count of words and patterns that anybody can check by hand.

Each sign of the voice file is a regular expression with points. It is looked for between word boundaries, in
any case, and counts once however often it occurs; points may be negative. The text is in the voice when the
points add up to the file's `in_voice_at` and none of its `breaks` occurs (the signs of speaking to the
character instead of as it, gates.py).

For the built-in dog that means: a noise, a part of the body or something that a dog does, and squirrels or
acorns beside it. One squirrel or one "my nose" alone is not enough; a text about dogs or squirrels from
outside (breeds, species, "my dog") loses points.
What it cannot do: understand. A sentence that names the words without the meaning passes.
tests/voice/labelled.jsonl holds lines labelled by hand, on which its mistakes are counted.
"""

from __future__ import annotations

import re
from functools import lru_cache

from bitnet.voice.voices import Voice


def signs_found(text: str, voice: Voice) -> dict[str, float]:
    """The signs that occur in a text, with their points."""
    return {sign: points for sign, points in voice.signs.items() if pattern(sign).search(text)}


def voice_score(text: str, voice: Voice) -> float:
    """Points of a text. Higher is more in the voice."""
    return sum(signs_found(text, voice).values())


def breaks_found(text: str, voice: Voice) -> list[str]:
    """The patterns of falling out of character that occur in a text."""
    return [broken for broken in voice.breaks if pattern(broken).search(text)]


def in_voice(text: str, voice: Voice) -> bool:
    """Whether a text is in the voice. A voice without signs knows none that is."""
    return (
        bool(voice.signs) and voice_score(text, voice) >= voice.in_voice_at and not breaks_found(text, voice)
    )


@lru_cache(maxsize=1024)
def pattern(source: str) -> re.Pattern[str]:
    """A sign between word boundaries, in any case."""
    return re.compile(rf"(?<!\w)(?:{source})(?!\w)", re.IGNORECASE | re.MULTILINE)
