"""A tokenizer that stands in a Hugging Face folder: `tokenizer.json`, and `tokenizer_config.json` beside it.

One class for those that bpe.py trains and for pretrained ones. The file is kept byte for byte, so that its
SHA-256 names the tokenizer wherever it is copied. Text such as "</s>" inside a document is encoded as the
letters it consists of. Not here: what a stranger's file may do (tokenizer_json.py), training (bpe.py),
fetching by name (pretrained.py), chat formats.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitnet.errors import DataError, NotFoundError
from bitnet.files import read_json, read_text, sha256_of, write_atomic, write_json
from bitnet.text.tokenizer_json import COPY, check_ids, library_errors, read_library_tokenizer, read_settings
from bitnet.text.word_cache import WordEncoder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
TOKENS_FILE = "special_tokens_map.json"  # where older folders name their special tokens
# Vocabularies of 262,144 entries with their merges have some 35 MB; as objects they take twenty times that.
MAX_BYTES = 64 << 20
END_TOKENS = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "<|im_end|>")
"""Tried in this order where no configuration names the token that ends a text."""


class SubwordTokenizer:
    """Ids of a tokenizer.json."""

    def __init__(self, content: str, config: dict[str, Any]) -> None:
        """content: the text of tokenizer.json; config: the values of tokenizer_config.json, `name_or_path`
        among them.
        """
        self._content, self._config = content, config
        self._settings = read_settings(content)
        self._library = read_library_tokenizer(content)
        self._ids = self._library.get_vocab(with_added_tokens=True)
        check_ids(self._ids)
        self._end = self._special("eos_token", END_TOKENS)
        if self._end is None:
            raise DataError(
                "the tokenizer has no token that ends a text; name one as eos_token in its "
                "tokenizer_config.json"
            )
        self._words = WordEncoder(self._encode_many)

    @property
    def vocab_size(self) -> int:
        """Number of ids: the highest, and one."""
        return max(self._ids.values()) + 1

    @property
    def pad_id(self) -> int:
        """The padding token, or the end of text where there is none."""
        found = self._special("pad_token", ("<pad>",))
        return self.eos_id if found is None else found

    @property
    def bos_id(self) -> int:
        """The token that begins a text, or the one that ends it where there is none (GPT-2)."""
        found = self._special("bos_token", ("<s>",))
        return self.eos_id if found is None else found

    @property
    def eos_id(self) -> int:
        """The token that ends a text."""
        assert self._end is not None
        return self._end

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without special ones."""
        ids: list[int] = self.encode_array(text).tolist()
        return ids

    def encode_array(self, text: str) -> NDArray[np.uint32]:
        """The ids of `encode` as an array."""
        import numpy as np

        try:
            if self._cuts_like_gpt2:
                return self._words(text)
            return np.array(self._encode_many([text])[0], dtype=np.uint32)
        except (UnicodeEncodeError, TypeError):
            raise DataError(
                "the text holds half of a surrogate pair, which UTF-8 cannot represent; remove it"
            ) from None

    def _encode_many(self, texts: list[str]) -> list[list[int]]:
        with library_errors("the tokenizer cannot encode the text"):
            found = self._library.encode_batch_fast(texts, add_special_tokens=False)
            return [encoding.ids for encoding in found]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; special tokens are left out."""
        with library_errors("the tokenizer cannot decode its ids"):
            return self._library.decode(list(ids), skip_special_tokens=True)

    def byte_lengths(self) -> NDArray[np.int64]:
        """UTF-8 bytes of text per id, (V,). A sentencepiece vocabulary's leading space counts, as it stands
        in its tokens.
        """
        import numpy as np

        added = self._library.get_added_tokens_decoder()
        lengths = np.zeros(self.vocab_size, dtype=np.int64)
        for token, index in self._ids.items():
            if index in added:
                lengths[index] = 0 if added[index].special else len(added[index].content.encode())
            elif self._is_byte_level:
                lengths[index] = len(token)  # one character of GPT-2's alphabet per byte
            elif len(token) == 6 and token.startswith("<0x"):
                lengths[index] = 1
            else:
                lengths[index] = len(token.replace("\u2581", " ").encode())
        return lengths

    def describe(self) -> dict[str, Any]:
        """Which tokenizer, its kind and size, and the SHA-256 of its tokenizer.json."""
        return {
            "tokenizer": self._config["name_or_path"],
            "tokenizer_kind": ("byte-level " if self._is_byte_level else "")
            + type(self._library.model).__name__,
            "tokenizer_vocab_size": self.vocab_size,
            "tokenizer_sha256": sha256_of(self._content),
        }

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json into the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / TOKENIZER_FILE, self._content)
        write_json(folder / CONFIG_FILE, self._config)

    @classmethod
    def load(cls, folder: Path, name: str | None = None) -> SubwordTokenizer:
        """Read a folder. name: what to call it; else what its configuration says, or the folder's name."""
        try:
            content = read_text(folder / TOKENIZER_FILE, MAX_BYTES, COPY)
            config = {**_object(folder / TOKENS_FILE), **_object(folder / CONFIG_FILE)}
        except NotFoundError:
            raise NotFoundError(
                f"there is no tokenizer at {folder / TOKENIZER_FILE}; give the folder that holds one"
            ) from None
        except DataError as error:
            raise DataError(f"the tokenizer in {folder} is damaged ({error})") from None
        named = config.get("name_or_path")
        known = named if isinstance(named, str) and named else folder.resolve().name
        try:
            return cls(content, {**config, "name_or_path": name or known})
        except DataError as error:
            raise DataError(f"{folder}: {error}") from None

    def _special(self, role: str, fallbacks: Sequence[str]) -> int | None:
        """Id of a special token: what the configuration names, else the first fallback that the vocabulary
        has.
        """
        named = self._config.get(role)
        content = named.get("content") if isinstance(named, dict) else named
        candidates = (content,) if isinstance(content, str) else fallbacks
        return next((self._ids[token] for token in candidates if token in self._ids), None)

    @cached_property
    def _is_byte_level(self) -> bool:
        return "ByteLevel" in json.dumps(self._settings.get("decoder"))

    @cached_property
    def _cuts_like_gpt2(self) -> bool:
        """Whether word_cache.py may cut its texts: GPT-2's expression, digits apart or not, and nothing that
        rewrites text.
        """
        whole = self._settings.get("pre_tokenizer") or {}
        *before, last = whole.get("pretokenizers", [whole]) or [{}]
        gpt2 = last.get("type") == "ByteLevel" and last.get("use_regex", True)
        added = self._settings.get("added_tokens", ())

        return (
            gpt2
            and not last.get("add_prefix_space")
            and all(step.get("type") == "Digits" for step in before)
            and all(token["special"] for token in added)
            and self._settings.get("normalizer") is None
        )


def _object(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one where there is no such file. Raises DataError for anything else."""
    return read_json(path, fix=COPY) if path.exists() else {}
