"""The teacher that needs nothing: a grammar over a voice's templates.

An answer is an opening, one or two middles and sometimes a closing, with each {slot} filled by one of its
words and {topic} by the topic. All choices are drawn with a seed from (voice, topic, text, seed), so that the
same question gets the same answer everywhere. Where no chosen sentence has room for the topic, the opening is
drawn again from those that do, so that nearly all answers mention it.
Not here: understanding. It answers every question about a topic alike.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import Any

from bitnet.errors import ConfigError
from bitnet.voice.teachers import Reply, Request
from bitnet.voice.voices import SLOT, TOPIC, Voice

DRAWS = 50  # tries for one more entry of a list that is not in it yet


class RulesTeacher:
    """Replies from templates."""

    batch_size = 64

    def describe(self) -> dict[str, Any]:
        """Its kind."""
        return {"kind": "rules", "name": "rules"}

    def reply(self, requests: Sequence[Request]) -> list[Reply]:
        """One utterance each, or a numbered list of different ones."""
        return [Reply(_written(request), ended=True) for request in requests]


def _written(request: Request) -> str:
    voice = request.voice
    if not voice.templates:
        raise ConfigError(
            f"the voice {voice.name} has no [templates], which the teacher `rules` speaks by; add them, or "
            "use another --teacher"
        )
    key = "\x1f".join((voice.name, request.topic, request.text, str(request.seed)))
    random_source = random.Random(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big"))
    if request.entries is None:
        return utterance(voice, request.topic, random_source)
    entries: dict[str, None] = {}
    for _ in range(request.entries * DRAWS):
        if len(entries) == request.entries:
            break
        entries[utterance(voice, request.topic, random_source)] = None
    return "\n".join(f"{number}. {entry}" for number, entry in enumerate(entries, start=1))


def utterance(voice: Voice, topic: str, random_source: random.Random) -> str:
    """One opening, one or two middles, and for about half of them a closing."""
    openings, middles, closings = (
        voice.templates.get(part, ()) for part in ("openings", "middles", "closings")
    )
    sentences = [random_source.choice(openings)]
    sentences += random_source.sample(middles, min(random_source.choice((1, 1, 2)), len(middles)))
    if closings and random_source.random() < 0.5:
        sentences.append(random_source.choice(closings))
    room = f"{{{TOPIC}}}"
    if not any(room in sentence for sentence in sentences):
        sentences[0] = random_source.choice([sentence for sentence in openings if room in sentence])
    filled = SLOT.sub(lambda match: _filled(voice, match[1], random_source), " ".join(sentences))
    return _capitalised(filled).replace(room, topic)


def _filled(voice: Voice, slot: str, random_source: random.Random) -> str:
    """A word for a slot, with the slots inside it filled too. The topic stays open until the end: it may hold
    braces.
    """
    if slot == TOPIC:
        return f"{{{TOPIC}}}"
    word = random_source.choice(voice.slots[slot])
    return SLOT.sub(lambda match: _filled(voice, match[1], random_source), word)


def _capitalised(text: str) -> str:
    """The first letter, and each after the end of a sentence, as a capital: a slot's word may stand there."""
    letters = list(text)
    begins = True
    for index, letter in enumerate(letters):
        if begins and letter.isalpha():
            letters[index] = letter.upper()
        if not letter.isspace():
            begins = letter in ".!?"
    return "".join(letters)
