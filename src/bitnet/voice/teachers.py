"""A teacher writes the data. This file says what it is asked and what it replies, and has the built-in one.

    rules                     a grammar over a voice's templates; needs nothing else
    http://..., https://...   an OpenAI-compatible endpoint, with the name of its model (endpoint.py)
    a folder or a hub name    a causal language model through transformers (huggingface.py)

The grammar builds an answer from an opening, one or two middles and sometimes a closing. It fills each {slot}
with one of the slot's words and {topic} with the topic. A seed from (voice, topic, text, seed) draws every
choice, so the same question gets the same answer everywhere. If no drawn sentence has room for the topic, the
opening is drawn again from those that do, so that nearly all answers mention it. The grammar does not
understand the question: it answers every question about a topic alike.
Not here: what is asked (prompts.py, answers.py).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from bitnet.bounds import MOST_NEW_TOKENS, within
from bitnet.errors import ConfigError
from bitnet.files import stable_number
from bitnet.voice.voices import SLOT, TOPIC, Voice

DEFAULT = "microsoft/bitnet-b1.58-2B-4T"
"""The plan's choice: the original model, because it is fast, and as a nod to it."""
LIST_FACTOR = 4  # a list may be this many times as long as an answer
DRAWS = 50  # attempts of the grammar at one more entry of a list that is not in it yet


class Request(NamedTuple):
    """One thing to write: `text` is said to the voice, which is to speak about `topic`."""

    voice: Voice
    topic: str
    text: str
    seed: int
    entries: int | None = None
    """The number of entries of a numbered list, or None for one answer."""


class Reply(NamedTuple):
    """What a teacher wrote. ended: it stopped by itself, not at a limit of length."""

    text: str
    ended: bool


class Teacher(Protocol):
    """Writes one reply to each request, in their order."""

    @property
    def batch_size(self) -> int:
        """The number of requests that it takes at once."""
        ...

    def describe(self) -> dict[str, Any]:
        """Kind, name and settings for manifests, without secrets."""
        ...

    def reply(self, requests: Sequence[Request]) -> list[Reply]:
        """Raises BitnetError if no answer can be had."""
        ...


@dataclass(frozen=True, kw_only=True)
class TeacherOptions:
    """How a language model writes. The grammar uses none of it."""

    model: str | None = None
    batch_size: int = 8
    max_new_tokens: int = 192
    temperature: float = 0.8
    timeout_s: float = 120.0
    device: str = "cpu"

    def __post_init__(self) -> None:
        within("--batch-size", self.batch_size, 1, 4096)
        within("--max-new-tokens", self.max_new_tokens, 1, MOST_NEW_TOKENS)
        if self.temperature:
            within("--temperature", self.temperature, 0.001, 1000.0)
        within("--timeout-s", self.timeout_s, 0.001, 86_400.0)

    def max_tokens(self, *, entries: bool) -> int:
        """The longest reply, in tokens of the model."""
        return self.max_new_tokens * (LIST_FACTOR if entries else 1)


def messages(request: Request) -> list[dict[str, str]]:
    """A request as chat messages: the voice's style, then the text."""
    return [{"role": "system", "content": request.voice.style}, {"role": "user", "content": request.text}]


def open_teacher(word: str, options: TeacherOptions) -> Teacher:
    """The teacher that a word names. Raises BitnetError if it cannot be had."""
    if word == "rules":
        return RulesTeacher()
    if word.startswith(("http://", "https://")):
        from bitnet.voice.endpoint import EndpointTeacher

        return EndpointTeacher(word, options)
    from bitnet.voice.huggingface import HuggingFaceTeacher

    return HuggingFaceTeacher(word, options)


class RulesTeacher:
    """The grammar."""

    batch_size = 64

    def describe(self) -> dict[str, Any]:
        return {"kind": "rules", "name": "rules"}

    def reply(self, requests: Sequence[Request]) -> list[Reply]:
        """One utterance each, or a numbered list of different ones."""
        return [Reply(_written(request), ended=True) for request in requests]


def _written(request: Request) -> str:
    voice = request.voice
    if not voice.templates:
        raise ConfigError(
            f"the voice {voice.name} has no [templates], which --teacher rules needs; add them, or use "
            "another --teacher"
        )
    key = "\x1f".join((voice.name, request.topic, request.text, str(request.seed)))
    random_source = random.Random(stable_number(key))
    if request.entries is None:
        return utterance(voice, request.topic, random_source)

    # a dict keeps the order of its keys, which a set does not
    entries: dict[str, None] = {}
    for _ in range(request.entries * DRAWS):
        if len(entries) == request.entries:
            break
        entries[utterance(voice, request.topic, random_source)] = None
    return "\n".join(f"{number}. {entry}" for number, entry in enumerate(entries, start=1))


def utterance(voice: Voice, topic: str, random_source: random.Random) -> str:
    """One opening, one or two middles, and a closing in about half of the cases."""
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
    """A word for a slot, with the slots inside it filled too."""
    # the topic is put in at the very end, because it may hold braces itself
    if slot == TOPIC:
        return f"{{{TOPIC}}}"
    word = random_source.choice(voice.slots[slot])
    return SLOT.sub(lambda match: _filled(voice, match[1], random_source), word)


def _capitalised(text: str) -> str:
    """Capitalise the first letter of each sentence, where a slot's word may stand."""
    letters = list(text)
    begins = True
    for index, letter in enumerate(letters):
        if begins and letter.isalpha():
            letters[index] = letter.upper()
        if not letter.isspace():
            begins = letter in ".!?"
    return "".join(letters)
