"""Token shards on disk: corpus/prepare.py writes them, training reads them through memory maps.

    DIR/manifest.json            written last; a folder without it is unfinished
        tokenizer/               the tokenizer of the ids
        train-00000.bin          token ids, uint16 where the vocabulary allows, else uint32, little-endian
        train-00000.idx          int64 pairs per document: its first token in this shard, its bytes of text
        held_out-00000.bin, .idx the same for the documents that are never trained on

Each document ends with the tokenizer's end-of-text id; nothing stands before it, since that id also says
"here begins the next". Files are memory-mapped: what is read lies in the system's file cache, not in the
process's own memory. Not here: writing (corpus/), windows for training (windows.py).
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator
from functools import cache, cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bitnet.errors import DataError, NotFoundError
from bitnet.files import read_json, sha256
from bitnet.text.tokenizer import Tokenizer, load_tokenizer
from bitnet.typed import check_types

FORMAT = 1
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer"
Split = Literal["train", "held_out"]
SPLITS: tuple[Split, ...] = ("train", "held_out")
AGAIN = "prepare the data again into another folder"
_NAME = re.compile(r"(train|held_out)-[0-9]{5,9}")
_TYPES: dict[str, Any] = {"dtype": Literal["<u2", "<u4"], "splits": dict, "tokenizer": dict, "settings": dict}
_ENTRY_TYPES: dict[str, Any] = {
    "name": str,
    "tokens": int,
    "documents": int,
    "text_bytes": int,
    "bin_sha256": str,
    "idx_sha256": str,
}


def token_dtype(vocab_size: int) -> str:
    """The smallest unsigned type that holds the ids."""
    return "<u2" if vocab_size <= 1 << 16 else "<u4"


class TokenStream:
    """The shards of one split, read as one long row of tokens."""

    def __init__(self, folder: Path, split: Split, entries: list[dict[str, Any]], dtype: str) -> None:
        self.split = split
        self._entries = [entry for entry in entries if entry["tokens"]]
        self._folder, self._dtype = folder, dtype
        self.tokens = sum(int(entry["tokens"]) for entry in entries)
        self.documents = sum(int(entry["documents"]) for entry in entries)
        self.text_bytes = sum(int(entry["text_bytes"]) for entry in entries)

    @cached_property
    def _shards(self) -> list[NDArray[np.unsignedinteger]]:
        return [
            np.memmap(self._folder / f"{entry['name']}.bin", dtype=self._dtype, mode="r")
            for entry in self._entries
        ]

    @cached_property
    def _starts(self) -> list[int]:
        return list(accumulate((int(entry["tokens"]) for entry in self._entries), initial=0))

    def read(self, start: int, count: int) -> NDArray[np.int64]:
        """Up to `count` tokens from `start` on; fewer at the end."""
        out = np.empty(max(min(count, self.tokens - start), 0), dtype=np.int64)
        done, shard = 0, bisect.bisect_right(self._starts, start) - 1
        while done < len(out):
            part = self._shards[shard][start + done - self._starts[shard] :][: len(out) - done]
            out[done : done + len(part)] = part
            done, shard = done + len(part), shard + 1
        return out

    def each_document(self) -> Iterator[NDArray[np.int64]]:
        """The tokens of every document, without its end mark, in order."""
        for entry, shard in zip(self._entries, self._shards, strict=True):
            index = np.memmap(self._folder / f"{entry['name']}.idx", dtype="<i8", mode="r").reshape(-1, 2)
            for number in range(len(index)):
                end = index[number + 1, 0] if number + 1 < len(index) else len(shard)
                yield shard[index[number, 0] : end - 1].astype(np.int64)


class Shards:
    """A folder that prepare.py finished."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder, self.manifest = folder, manifest
        self.train, self.held_out = (
            TokenStream(folder, split, manifest["splits"][split], manifest["dtype"]) for split in SPLITS
        )

    @classmethod
    def open(cls, folder: Path, tokenizer: Tokenizer | None = None) -> Shards:
        """Check the files' sizes, and the tokenizer if one is given. Raises DataError naming what does not
        fit.
        """
        try:
            manifest = read_json(folder / MANIFEST, fix=AGAIN)
            if manifest["format"] != FORMAT:
                raise DataError(
                    f"{folder} has format {manifest['format']}, this version reads {FORMAT}; prepare the "
                    "data again"
                )
            _check_manifest(manifest, folder / MANIFEST)
            shards = cls(folder, manifest)
            shards._check_sizes()
        except NotFoundError:
            raise NotFoundError(
                f"there is no prepared data in {folder} (no {MANIFEST}); run bitnet prepare, or repeat it to "
                "finish"
            ) from None
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{folder / MANIFEST} is damaged ({error}); {AGAIN}") from None
        if tokenizer is not None:
            shards.check_tokenizer(tokenizer)
        return shards

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Raise DataError unless the ids are this tokenizer's."""
        here, given = self.manifest["tokenizer"]["tokenizer_sha256"], tokenizer.describe()["tokenizer_sha256"]
        if here != given:
            raise DataError(
                f"the data in {self.folder} was made with another tokenizer (sha256 {here[:12]}, not "
                f"{given[:12]}); use the one in {self.folder / TOKENIZER}, or prepare the data again"
            )

    def tokenizer(self) -> Tokenizer:
        """The tokenizer whose ids these are."""
        tokenizer = load_tokenizer(self.folder / TOKENIZER)
        self.check_tokenizer(tokenizer)
        return tokenizer

    def verify(self, vocab_size: int) -> None:
        """Hash every file, once in a process. Raises DataError naming the first that was altered, and for ids
        beyond the vocabulary.
        """
        for path, entry in self._files():
            stat = path.stat()
            if _known_sha256(path, stat.st_size, stat.st_mtime_ns) != entry[f"{path.suffix[1:]}_sha256"]:
                raise DataError(
                    f"{path} was altered since it was written; delete {self.folder} and prepare the data "
                    "again"
                )
            holds_ids = path.suffix == ".bin" and entry["tokens"]
            largest = _largest_id(path, self.manifest["dtype"]) if holds_ids else 0
            if largest >= vocab_size:
                raise DataError(
                    f"{path} holds the id {largest}, beyond the {vocab_size:,} of its tokenizer; {AGAIN}"
                )

    def _check_sizes(self) -> None:
        width = np.dtype(self.manifest["dtype"]).itemsize
        for path, entry in self._files():
            expected = entry["tokens"] * width if path.suffix == ".bin" else entry["documents"] * 16
            found = path.stat().st_size if path.is_file() else None
            if found != expected:
                state = "is missing" if found is None else f"has {found:,} bytes instead of {expected:,}"
                raise DataError(f"{path} {state}; delete {self.folder} and prepare the data again")

    def _files(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        for split in SPLITS:
            for entry in self.manifest["splits"][split]:
                for suffix in (".bin", ".idx"):
                    yield self.folder / f"{entry['name']}{suffix}", entry


def _check_manifest(manifest: dict[str, Any], path: Path) -> None:
    """Raise DataError for values of another type, and for names of other files, which might lead out of the
    folder.
    """
    check_types(manifest, _TYPES, str(path), _TYPES)
    check_types(
        manifest["tokenizer"], {"tokenizer_sha256": str}, f"{path}, tokenizer,", ("tokenizer_sha256",)
    )
    for entry in (one for split in SPLITS for one in manifest["splits"][split]):
        check_types(entry, _ENTRY_TYPES, f"{path}, a shard", _ENTRY_TYPES)
        if (
            not _NAME.fullmatch(entry["name"])
            or min(entry["tokens"], entry["documents"], entry["text_bytes"]) < 0
        ):
            raise DataError(f"{path} describes {entry['name'][:80]!r}, which is not a shard; {AGAIN}")
    if not any(entry["tokens"] for entry in manifest["splits"]["train"]):
        raise DataError(f"{path} has no token to train on; {AGAIN}")


def _largest_id(path: Path, dtype: str) -> int:
    return int(np.memmap(path, dtype=dtype, mode="r").max())


@cache
def _known_sha256(path: Path, size: int, mtime_ns: int) -> str:
    """The hash of a file as it is; size and time make a file that was written to another key."""
    return sha256(path)
