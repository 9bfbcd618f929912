"""Append documents to the shards of one split, with notes to continue from after an interruption.

`commit` puts everything on disk and returns a note; a writer made from that note truncates the files to it.
Not here: reading (shards.py), when to commit (prepare.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from bitnet.data.shards import Split
from bitnet.errors import DataError
from bitnet.files import sha256

INDEX_BYTES = 16  # per document
EMPTY_SHARD = {"tokens": 0, "documents": 0, "text_bytes": 0}


class SplitWriter:
    """The shards of one split while they are written."""

    def __init__(
        self, folder: Path, split: Split, dtype: str, shard_tokens: int, note: dict[str, Any] | None
    ) -> None:
        self._folder, self._split, self._shard_tokens = folder, split, shard_tokens
        self._width = np.dtype(dtype).itemsize
        self._closed: list[dict[str, Any]] = list(note["closed"]) if note else []
        self._sizes: dict[str, int] = dict(note["open"]) if note else dict(EMPTY_SHARD)
        self._files: dict[str, IO[bytes]] = {}

    def __enter__(self) -> Self:
        try:
            self._open_files()
        except BaseException:
            self._close_files()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close_files()

    def _close_files(self) -> None:
        """Close every file, also where the disk is too full for what is still in a buffer; the first error is
        raised at the end.
        """
        with ExitStack() as closing:
            for file in self._files.values():
                closing.callback(file.close)

    @property
    def _name(self) -> str:
        return f"{self._split}-{len(self._closed):05d}"

    def _open_files(self) -> None:
        """The open shard's files, cut back to the note."""
        for suffix, size in (
            (".bin", self._sizes["tokens"] * self._width),
            (".idx", self._sizes["documents"] * INDEX_BYTES),
        ):
            path = self._folder / f"{self._name}{suffix}"
            file = self._files[suffix] = path.open("ab")
            if path.stat().st_size < size:
                raise DataError(
                    f"{path} is shorter than {size:,} bytes, which were written already; delete "
                    f"{self._folder} and begin again"
                )
            file.truncate(size)

    def add(
        self, tokens: NDArray[np.unsignedinteger], lengths: NDArray[np.int64], text_bytes: NDArray[np.int64]
    ) -> None:
        """Append D documents. tokens: (sum of lengths,); lengths, text_bytes: (D,)."""
        if not len(lengths):
            return
        starts = self._sizes["tokens"] + np.cumsum(lengths) - lengths
        self._files[".bin"].write(tokens.tobytes())
        self._files[".idx"].write(np.stack([starts, text_bytes], axis=1).astype("<i8").tobytes())
        for key, value in (
            ("tokens", lengths.sum()),
            ("documents", len(lengths)),
            ("text_bytes", text_bytes.sum()),
        ):
            self._sizes[key] += int(value)
        if self._sizes["tokens"] >= self._shard_tokens:
            self._close_shard()
            self._open_files()

    def commit(self) -> dict[str, Any]:
        """Put everything on disk. Returns the note that a later writer continues from."""
        _to_disk(self._files.values())
        return {"closed": self._closed, "open": dict(self._sizes)}

    def finish(self) -> list[dict[str, Any]]:
        """Close the last shard, an empty one only where it is the first. Returns the manifest's entries."""
        if self._sizes["documents"] or not self._closed:
            self._close_shard()
        else:
            for suffix in (".bin", ".idx"):
                (self._folder / f"{self._name}{suffix}").unlink()
        return self._closed

    def _close_shard(self) -> None:
        _to_disk(self._files.values())
        hashes = {}
        for suffix, file in self._files.items():
            file.close()
            hashes[f"{suffix[1:]}_sha256"] = sha256(self._folder / f"{self._name}{suffix}")
        self._closed.append({"name": self._name, **self._sizes, **hashes})
        self._sizes = dict(EMPTY_SHARD)


def _to_disk(files: Iterable[IO[bytes]]) -> None:
    for file in files:
        file.flush()
        os.fsync(file.fileno())
