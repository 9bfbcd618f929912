"""What the rest of the program may ask of a tokenizer, and how one is found again in a folder.

Not here: any tokenizer. Characters stand in characters.py, everything with a tokenizer.json in subword.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from bitnet.errors import DataError, NotFoundError
from bitnet.files import new_folder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>")
PAD, BOS, EOS, UNK = range(4)
"""Their ids in every tokenizer that this project makes. A pretrained one has its own: ask `pad_id`, `bos_id`,
`eos_id`."""


class Tokenizer(Protocol):
    """Text to ids and back. Text that looks like a special token is text: only ids are control tokens."""

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        ...

    @property
    def pad_id(self) -> int:
        """What fills a row; never scored."""
        ...

    @property
    def bos_id(self) -> int:
        """What begins a conversation or a document, where something does."""
        ...

    @property
    def eos_id(self) -> int:
        """What ends a document; generation stops there."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without special ones. Raises DataError for text it cannot represent."""
        ...

    def encode_array(self, text: str) -> NDArray[np.uint32]:
        """The ids of `encode`, as an array: for documents of many megabytes."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; special tokens are left out."""
        ...

    def byte_lengths(self) -> NDArray[np.int64]:
        """UTF-8 bytes of text that each id stands for, (V,); 0 for special and unused ids. For bits per
        byte.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Kind and sha256, for meta/config.json."""
        ...

    def save(self, folder: Path) -> None:
        """Write the files that `load_tokenizer` reads."""
        ...


def save_in_place(tokenizer: Tokenizer, folder: Path) -> None:
    """Save into a folder that is whole or absent, and must not hold anything yet. Raises DataError."""
    try:
        with new_folder(folder) as temporary:
            tokenizer.save(temporary)
    except OSError as error:
        raise DataError(f"{folder} cannot be written ({error.strerror}); choose another folder") from None


def save_or_keep(tokenizer: Tokenizer, folder: Path) -> None:
    """Save it, or leave the folder as it is where it holds the same one. Raises DataError for another."""
    if not holds_tokenizer(folder):
        save_in_place(tokenizer, folder)
    elif load_tokenizer(folder).describe()["tokenizer_sha256"] != tokenizer.describe()["tokenizer_sha256"]:
        raise DataError(f"{folder} holds another tokenizer; delete it, or name a new folder with --out")


def holds_tokenizer(folder: Path) -> bool:
    """Whether `load_tokenizer` would find one in the folder."""
    from bitnet.text.characters import FILE_NAME
    from bitnet.text.subword import TOKENIZER_FILE

    return any((folder / name).is_file() for name in (TOKENIZER_FILE, FILE_NAME))


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer saved in a folder: characters.json, or a Hugging Face tokenizer.json."""
    from bitnet.text.characters import FILE_NAME, CharacterTokenizer
    from bitnet.text.subword import TOKENIZER_FILE, SubwordTokenizer

    if (folder / TOKENIZER_FILE).is_file():
        return SubwordTokenizer.load(folder)
    if (folder / FILE_NAME).is_file():
        return CharacterTokenizer.load(folder)
    raise NotFoundError(
        f"there is no tokenizer in {folder} (neither {TOKENIZER_FILE} nor {FILE_NAME}); copy a run's "
        "tokenizer folder back, or make one with: bitnet tokenizer train"
    )
