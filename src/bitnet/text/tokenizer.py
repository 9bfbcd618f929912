"""What the rest of the program may ask of a tokenizer, and how one is found again in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>")
PAD, BOS, EOS, UNK = range(4)


class Tokenizer(Protocol):
    """Ids 0..3 are <pad> <s> </s> <unk> in every tokenizer of this project."""

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of a text. Raises DataError for text it cannot represent."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; special tokens are left out."""
        ...

    def describe(self) -> dict[str, Any]:
        """Kind and sha256, for meta/config.json."""
        ...

    def save(self, folder: Path) -> None:
        """Write the files that `load_tokenizer` reads."""
        ...


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer saved in a folder."""
    from bitnet.text.characters import CharacterTokenizer

    return CharacterTokenizer.load(folder)
