"""One token per character, from an alphabet that is given or counted.

A generated task gives its alphabet, and another character is an error. An alphabet that is counted in texts
keeps the most frequent characters; the others become <unk> and are lost. Byte-level BPE (bpe.py) loses
nothing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitnet.bounds import MOST_ENTRIES
from bitnet.errors import DataError, NotFoundError
from bitnet.files import read_json, sha256_of, write_atomic
from bitnet.text.tokenizer import BOS, EOS, PAD, SPECIAL_TOKENS, UNK
from bitnet.typed import check_types

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FILE_NAME = "characters.json"


class CharacterTokenizer:
    """Special tokens first, then the alphabet, then unused ids up to `vocab_size`."""

    pad_id, bos_id, eos_id = PAD, BOS, EOS

    def __init__(self, alphabet: str, vocab_size: int, *, unknown: bool = False) -> None:
        """alphabet: distinct characters, in the order of their ids; vocab_size: at least 4 more than its
        length.

        unknown: whether other characters become <unk>, instead of an error.
        """
        if vocab_size > MOST_ENTRIES:
            raise DataError(
                f"a vocabulary of {vocab_size:,} entries is above the {MOST_ENTRIES:,} that are read; ask "
                "for fewer"
            )
        if len(set(alphabet)) != len(alphabet):
            raise DataError("the alphabet repeats a character; list each once")
        needed = len(SPECIAL_TOKENS) + len(alphabet)
        if vocab_size < needed:
            raise DataError(
                f"a vocabulary of {vocab_size} is too small for {len(alphabet)} characters; it must be at "
                f"least {needed}"
            )
        self.alphabet = alphabet
        self._vocab_size = vocab_size
        self._unknown = unknown
        self._ids = {character: index + len(SPECIAL_TOKENS) for index, character in enumerate(alphabet)}

    @classmethod
    def count(cls, texts: Iterable[str], vocab_size: int) -> CharacterTokenizer:
        """The most frequent characters of the texts; the rest is <unk>."""
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(text)
        by_frequency = sorted(counts, key=lambda character: (-counts[character], character))
        most = by_frequency[: max(vocab_size - len(SPECIAL_TOKENS), 0)]
        if not most:
            raise DataError(
                f"no alphabet of {vocab_size} entries can be counted; give text, and a size above "
                f"{len(SPECIAL_TOKENS)}"
            )
        return cls("".join(sorted(most)), vocab_size, unknown=True)

    @property
    def used(self) -> int:
        """Number of ids that are a character or special."""
        return len(SPECIAL_TOKENS) + len(self.alphabet)

    @property
    def vocab_size(self) -> int:
        """Number of ids, the unused ones included."""
        return self._vocab_size

    def encode(self, text: str) -> list[int]:
        """One id per character."""
        if self._unknown:
            return [self._ids.get(character, UNK) for character in text]
        try:
            return [self._ids[character] for character in text]
        except KeyError as error:
            raise DataError(
                f"the character {error.args[0]!r} is not in this model's alphabet; use only these: "
                f"{self.alphabet!r}"
            ) from None

    def encode_array(self, text: str) -> NDArray[np.uint32]:
        """The ids of `encode` as an array."""
        import numpy as np

        return np.array(self.encode(text), dtype=np.uint32)

    def decode(self, ids: Sequence[int]) -> str:
        """Characters of the ids; special and unused ids give nothing."""
        first = len(SPECIAL_TOKENS)
        return "".join(self.alphabet[i - first] for i in ids if first <= i < first + len(self.alphabet))

    def byte_lengths(self) -> NDArray[np.int64]:
        """UTF-8 bytes of each id's character, (V,); 0 for special and unused ids."""
        import numpy as np

        lengths = np.zeros(self._vocab_size, dtype=np.int64)
        for character, index in self._ids.items():
            lengths[index] = len(character.encode(errors="surrogatepass"))
        return lengths

    def describe(self) -> dict[str, Any]:
        """Kind and sha256 of what defines the ids."""
        known = {"tokenizer": "characters", "tokenizer_sha256": sha256_of(self._json())}
        return {**known, "tokenizer_unknown": True} if self._unknown else known

    def _json(self) -> str:
        values = {"kind": "characters", "alphabet": self.alphabet, "vocab_size": self._vocab_size}
        return json.dumps({**values, "unknown": True} if self._unknown else values)

    def save(self, folder: Path) -> None:
        """Write characters.json into the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / FILE_NAME, self._json() + "\n")

    @classmethod
    def load(cls, folder: Path) -> CharacterTokenizer:
        """Read what `save` wrote."""
        path = folder / FILE_NAME
        try:
            types = {"alphabet": str, "vocab_size": int, "unknown": bool}
            values = check_types(read_json(path), types, str(path), required=("alphabet", "vocab_size"))
            return cls(values["alphabet"], values["vocab_size"], unknown=values.get("unknown", False))
        except NotFoundError:
            raise NotFoundError(
                f"there is no tokenizer at {path}; train the run again or copy its tokenizer folder back"
            ) from None
        except DataError as error:
            raise DataError(
                f"the tokenizer at {path} is damaged ({error}); copy the folder back from the run it belongs "
                "to"
            ) from None
