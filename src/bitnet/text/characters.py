"""One token per character: for tasks whose alphabet is known beforehand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bitnet.errors import DataError, NotFoundError
from bitnet.text.tokenizer import SPECIAL_TOKENS

FILE_NAME = "characters.json"


class CharacterTokenizer:
    """Special tokens first, then the alphabet, then unused ids up to `vocab_size`."""

    def __init__(self, alphabet: str, vocab_size: int) -> None:
        """alphabet: distinct characters, in the order of their ids; vocab_size: at least 4 more than its length."""
        if len(set(alphabet)) != len(alphabet):
            raise DataError("the alphabet repeats a character; list each once")
        needed = len(SPECIAL_TOKENS) + len(alphabet)
        if vocab_size < needed:
            raise DataError(f"a vocabulary of {vocab_size} is too small for {len(alphabet)} characters; it must be at least {needed}")
        self.alphabet = alphabet
        self._vocab_size = vocab_size
        self._ids = {character: index + len(SPECIAL_TOKENS) for index, character in enumerate(alphabet)}

    @property
    def vocab_size(self) -> int:
        """Number of ids, the unused ones included."""
        return self._vocab_size

    def encode(self, text: str) -> list[int]:
        """One id per character."""
        try:
            return [self._ids[character] for character in text]
        except KeyError as error:
            raise DataError(f"the character {error.args[0]!r} is not in this model's alphabet; it knows only {self.alphabet!r}") from None

    def decode(self, ids: Sequence[int]) -> str:
        """Characters of the ids; special and unused ids give nothing."""
        first = len(SPECIAL_TOKENS)
        return "".join(self.alphabet[i - first] for i in ids if first <= i < first + len(self.alphabet))

    def describe(self) -> dict[str, Any]:
        """Kind and sha256 of what defines the ids."""
        return {"tokenizer": "characters", "tokenizer_sha256": hashlib.sha256(self._json().encode()).hexdigest()}

    def _json(self) -> str:
        return json.dumps({"kind": "characters", "alphabet": self.alphabet, "vocab_size": self._vocab_size})

    def save(self, folder: Path) -> None:
        """Write characters.json into the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FILE_NAME).write_text(self._json() + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> CharacterTokenizer:
        """Read what `save` wrote."""
        path = folder / FILE_NAME
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return cls(values["alphabet"], values["vocab_size"])
        except FileNotFoundError:
            raise NotFoundError(f"there is no tokenizer at {path}; train the run again or copy its tokenizer folder back") from None
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise DataError(f"the tokenizer at {path} is damaged ({error}); copy the folder back from the run it belongs to") from None
