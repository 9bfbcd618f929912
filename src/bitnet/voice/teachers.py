"""Who writes the data: what a teacher is asked, what it gives back, and how a word names one.

    rules                     the built-in grammar; needs nothing (rules.py)
    http://..., https://...   any OpenAI-compatible endpoint, with the name of its model (endpoint.py)
    a folder or a hub name    a causal language model through transformers (huggingface.py)

Not here: what is asked for (prompts.py, answers.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from bitnet.bounds import MOST_NEW_TOKENS, within
from bitnet.voice.voices import Voice

DEFAULT = "microsoft/bitnet-b1.58-2B-4T"
"""The seeds' choice: the original model, because it is fast, and as a nod to it."""


class Request(NamedTuple):
    """One thing to write: `text` is said to the voice, which is to speak about `topic`."""

    voice: Voice
    topic: str
    text: str
    seed: int
    entries: int | None = None
    """A numbered list of so many entries is wanted; None: one answer."""


class Reply(NamedTuple):
    """What a teacher wrote. ended: by itself, not at a limit of length."""

    text: str
    ended: bool


class Teacher(Protocol):
    """Writes replies, as many and in the order of the requests."""

    @property
    def batch_size(self) -> int:
        """Requests that it takes at once."""
        ...

    def describe(self) -> dict[str, Any]:
        """Kind and name, for manifests; never a secret."""
        ...

    def reply(self, requests: Sequence[Request]) -> list[Reply]:
        """Raises BitnetError where no answer can be had."""
        ...


@dataclass(frozen=True, kw_only=True)
class TeacherOptions:
    """How a teacher writes. Rules take none of it."""

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


def open_teacher(word: str, options: TeacherOptions) -> Teacher:
    """The teacher that a word names. Raises BitnetError where it cannot be had."""
    if word == "rules":
        from bitnet.voice.rules import RulesTeacher

        return RulesTeacher()
    if word.startswith(("http://", "https://")):
        from bitnet.voice.endpoint import EndpointTeacher

        return EndpointTeacher(word, options)
    from bitnet.voice.huggingface import HuggingFaceTeacher

    return HuggingFaceTeacher(word, options)
