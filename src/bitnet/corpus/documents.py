"""Documents from local files, one after another, with a position to continue from.

`DocumentSource` is what preparing data asks of any source; `LocalFiles` is the one for files, folders and
patterns. Not here: the kinds of file (readers.py), data sets of the hub (hub.py), what becomes of a document
(prepare.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, Protocol

from bitnet.corpus.readers import BUFFER_BYTES, EMPTY, KINDS, Record, read_file
from bitnet.errors import ConfigError, DataError, NotFoundError, did_you_mean

MOST_FILES = 100_000
Position = dict[str, Any]
"""Where to continue reading, as JSON."""


class Reading(Protocol):
    """A source while it is read."""

    def __iter__(self) -> Iterator[Record]:
        """The records from where it was opened."""
        ...

    def position(self) -> Position:
        """What `open` takes to continue after the last record that was given."""
        ...

    def place(self) -> str:
        """The last record's place, for people."""
        ...

    def fraction(self) -> float | None:
        """Share of the source that was read, if its size is known."""
        ...


class DocumentSource(Protocol):
    """Somewhere documents come from, always in the same order."""

    @property
    def name(self) -> str:
        """What the data is called."""
        ...

    @property
    def revision(self) -> str | None:
        """The hub's commit, if it is from there."""
        ...

    @property
    def size_bytes(self) -> int | None:
        """Bytes to read, compressed as they are, if known."""
        ...

    def identity(self) -> dict[str, Any]:
        """What decides the documents: two sources of equal identity give the same."""
        ...

    def open(self, position: Position | None = None) -> Reading:
        """Begin to read, or continue from a position."""
        ...


class LocalFiles:
    """Files, folders of them and patterns, in the order given, each folder and pattern sorted."""

    revision = None

    def __init__(self, paths: Sequence[str | Path], column: str = "text") -> None:
        """Raises NotFoundError where nothing is found, ConfigError for a kind of file that is not read."""
        self.files = find_files(paths)
        self.column = column

    @property
    def name(self) -> str:
        """The file's name, or the folder's and how many."""
        first, count = self.files[0], len(self.files)
        return first.name if count == 1 else f"{first.resolve().parent.name} ({count} files)"

    @property
    def size_bytes(self) -> int:
        """Bytes of the files as they are on disk."""
        return sum(file.stat().st_size for file in self.files)

    def identity(self) -> dict[str, Any]:
        """Names, sizes and times of the files, and the column."""
        stats = [(file.name, file.stat()) for file in self.files]
        return {
            "files": [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats],
            "column": self.column,
        }

    def open(self, position: Position | None = None) -> LocalReading:
        """Begin to read, or continue from a position."""
        return LocalReading(self, position)


class LocalReading:
    """Local files while they are read."""

    def __init__(self, source: LocalFiles, position: Position | None) -> None:
        self._source = source
        self._file: int = position["file"] if position else 0
        self._record: int = position["record"] if position else 0
        self._bytes_before = sum(file.stat().st_size for file in source.files[: self._file])
        self._size, self._raw_bytes = max(source.size_bytes, 1), 0

    def __iter__(self) -> Iterator[Record]:
        """The records; those before the position are read again and skipped."""
        for index in range(self._file, len(self._source.files)):
            path = self._source.files[index]
            passed = self._record if index == self._file else 0
            self._file, self._record = index, 0
            with _opened(path) as raw:
                for record in read_file(path, raw, self._source.column):
                    self._record += 1
                    if self._record > passed:
                        self._raw_bytes = raw.tell()
                        yield record
            self._bytes_before += path.stat().st_size
            self._raw_bytes = 0

    def position(self) -> Position:
        """Index of the file and how many of its records were given."""
        return {"file": self._file, "record": self._record}

    def place(self) -> str:
        """File and number of the record."""
        return f"{self._source.files[self._file]}, record {self._record}"

    def fraction(self) -> float:
        """Share of the bytes on disk that were read."""
        return (self._bytes_before + self._raw_bytes) / self._size


@dataclass
class Skipped:
    """Records that cannot be used: how many are empty, how many broken, and where and why the first of
    these.
    """

    empty: int = 0
    broken: int = 0
    first_broken: str | None = None

    def add(self, record: Record, reading: Reading) -> None:
        """Count a record without text, the last that the reading gave."""
        if record.problem == EMPTY:
            self.empty += 1
        else:
            self.broken += 1
            self.first_broken = self.first_broken or f"{reading.place()}: {record.problem}"

    def __bool__(self) -> bool:
        return bool(self.empty or self.broken)

    def __str__(self) -> str:
        empty = [f"{self.empty:,} empty"] if self.empty else []
        broken = [f"{self.broken:,} broken (first: {self.first_broken})"] if self.broken else []
        return ", ".join(empty + broken) or "nothing in it"


def usable_texts(source: DocumentSource, skipped: Skipped | None = None) -> Iterator[str]:
    """The documents. skipped: counts the others. Raises DataError where there are none."""
    reading, left_out, found = source.open(), Skipped() if skipped is None else skipped, False
    for record in reading:
        if record.text is None:
            left_out.add(record, reading)
        else:
            found = True
            yield record.text
    if not found:
        raise DataError(f"{source.name} has no document that can be used ({left_out}); give files with text")


def find_files(paths: Sequence[str | Path]) -> list[Path]:
    """The files that paths, folders and patterns stand for."""
    if not paths:
        raise ConfigError("no data was named; give files, folders or patterns with --data")
    return [file for path in paths for file in _expand(Path(path).expanduser())]


def _expand(path: Path) -> list[Path]:
    """The files that one path, folder or pattern stands for."""
    kinds = ", ".join(KINDS)
    if path.is_dir():
        named = (file for file in path.rglob("*") if file.name.endswith(KINDS))
        found = _bounded(path, (file for file in named if not file.name.startswith(".")))
        if not found:
            raise NotFoundError(f"the folder {path} holds no file that can be read ({kinds}); name another")
        return found

    found = [path] if path.is_file() else _matches(path)
    if not found:
        beside = [one.name for one in path.parent.iterdir()] if path.parent.is_dir() else []
        near = did_you_mean(path.name, beside[:200])
        raise NotFoundError(f"there is no file, folder or match of {path}.{near}")
    for file in found:
        if not file.name.endswith(KINDS):
            raise ConfigError(f"{file} is of a kind that is not read; there is: {kinds}")
    return found


def _matches(pattern: Path) -> list[Path]:
    """Files that a pattern such as `books/*.jsonl.xz` stands for."""
    root = Path(pattern.anchor or ".")
    return _bounded(pattern, root.glob(str(pattern.relative_to(pattern.anchor))))


def _bounded(named: Path, found: Iterator[Path]) -> list[Path]:
    """The regular files among those found, sorted. Raises DataError for more than MOST_FILES: their names are
    all held.
    """
    files = list(islice((file for file in found if file.is_file()), MOST_FILES + 1))
    if len(files) > MOST_FILES:
        raise DataError(
            f"{named} holds more than {MOST_FILES:,} files; join them into fewer, or name a part of them"
        )
    return sorted(files)


def _opened(path: Path) -> IO[bytes]:
    try:
        return path.open("rb", BUFFER_BYTES)
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}); check its permissions, or leave it out"
        ) from None
