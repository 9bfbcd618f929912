"""Files of JSON lines: appended while training, read leniently, cut back on resume.

Every line carries `step`. A line that is half-written or foreign is skipped and counted, never fatal.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from bitnet.errors import DataError, RunError
from bitnet.files import finite, lines_of, open_regular, parse_json
from bitnet.run.layout import RunLayout
from bitnet.run.records import is_row

Listener = Callable[[str, dict[str, Any]], None]
"""Called with the stem of a file and each row that is written to it."""
LONGEST_LINE = 4 << 20  # bytes of a line that is parsed; a sample of 1,024 tokens has some 20 kB
MOST_BYTES = 512 << 20  # of a file that is read whole; 400,000 updates leave some 200 MB
PIECE_BYTES = 1 << 20


class Extent(TypedDict):
    """How far a file of lines reaches, and the SHA-256 of all of it."""

    bytes: int
    lines: int
    sha256: str


class LineWriter:
    """Appends objects to a file, one per line, each line handed to the system at once."""

    def __init__(self, path: Path, listeners: Sequence[Listener] = ()) -> None:
        """listeners: trackers such as TensorBoard."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.listeners = path, listeners
        self._file = path.open("a+b")

        # A checkpoint records the digest of all lines so far, those of earlier processes included.
        self._digest, self._bytes, self._lines = hashlib.sha256(), 0, 0
        self._file.seek(0)
        while piece := self._file.read(PIECE_BYTES):
            self._count(piece, piece.count(b"\n"))

    def write(self, row: dict[str, Any]) -> None:
        """Append one object. NaN and infinities become null: they are not JSON."""
        line = json.dumps(finite(row), allow_nan=False).encode() + b"\n"
        self._file.write(line)
        self._file.flush()
        self._count(line)
        for listener in self.listeners:
            listener(self.path.stem, row)

    def sync(self) -> None:
        """Wait until the lines are on disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def extent(self) -> Extent:
        """What the file holds by now, for a checkpoint to remember."""
        return {"bytes": self._bytes, "lines": self._lines, "sha256": self._digest.hexdigest()}

    def _count(self, piece: bytes, lines: int = 1) -> None:
        self._digest.update(piece)
        self._bytes, self._lines = self._bytes + len(piece), self._lines + lines

    def __enter__(self) -> LineWriter:
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(OSError):  # a full disk was reported by the write that met it
            self._file.close()


@dataclass(frozen=True)
class LineWriters:
    """A writer for each file of lines that training appends to."""

    scalars: LineWriter
    quantization: LineWriter
    evaluations: LineWriter
    samples: LineWriter

    def all(self) -> tuple[LineWriter, ...]:
        """Every one of them."""
        return self.scalars, self.quantization, self.evaluations, self.samples


@contextmanager
def open_writers(layout: RunLayout, listeners: Sequence[Listener] = ()) -> Iterator[LineWriters]:
    """The writers of a run, closed at the end of the block."""
    with ExitStack() as closing:

        def opened(path: Path) -> LineWriter:
            return closing.enter_context(LineWriter(path, listeners))

        yield LineWriters(
            scalars=opened(layout.scalars),
            quantization=opened(layout.quantization),
            evaluations=opened(layout.evaluations),
            samples=opened(layout.samples),
        )


class Lines(NamedTuple):
    """rows in file order; skipped: lines that were not JSON objects with a step."""

    rows: list[dict[str, Any]]
    skipped: int


def read_lines(path: Path) -> Lines:
    """All readable rows of a file; none if it does not exist. Raises DataError above MOST_BYTES."""
    if not path.is_file():
        return Lines([], 0)
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise DataError(
            f"{path} has {size:,} bytes, more than the {MOST_BYTES:,} that are read; cut it, or use another "
            "run"
        )
    with open_regular(path) as file:
        parsed = [None if line is None else _parse(line) for line in lines_of(file, LONGEST_LINE)]
    rows = [row for row in parsed if row is not None]
    return Lines(rows, len(parsed) - len(rows))


def tail(path: Path, window_bytes: int = 1 << 16) -> Lines:
    """The rows in the last part of a file, however long it is.

    The window doubles until it holds a whole row, up to LONGEST_LINE.
    """
    if not path.is_file():
        return Lines([], 0)
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        while True:
            begin = max(0, size - window_bytes)
            file.seek(begin)
            lines = file.read(window_bytes).splitlines()[1 if begin else 0 :]  # the first may be cut
            parsed = [_parse(line) for line in lines]
            rows = [row for row in parsed if row is not None]
            if rows or begin == 0 or window_bytes > LONGEST_LINE:
                return Lines(rows, len(parsed) - len(rows))
            window_bytes *= 2


def last_line(path: Path) -> dict[str, Any] | None:
    """The last readable row, found from the end of the file."""
    rows = tail(path).rows
    return rows[-1] if rows else None


def cut_back(path: Path, step: int) -> None:
    """Drop every line after update `step`, and a half-written last line, without rewriting what stays."""
    if not path.is_file():
        return
    keep = 0
    with path.open("rb+") as file:
        for line in lines_of(file, LONGEST_LINE):
            whole = line is None or line.endswith(b"\n")
            row = _parse(line) if line is not None and whole else None
            if not whole or (row is not None and row["step"] > step):
                break
            keep = file.tell()
        file.truncate(keep)
        file.flush()
        os.fsync(file.fileno())


def verify_extent(path: Path, extent: Extent) -> None:
    """Raise RunError unless a file begins with the bytes that were written to it up to a checkpoint."""
    fix = "restore it from a copy, or go on with the weights alone in a new run: bitnet train ... --from RUN"
    if not path.exists():
        if extent["bytes"]:
            raise RunError(f"{path} is missing, and had {extent['lines']:,} lines at the checkpoint; {fix}")
        return

    found, size, lines = hashlib.sha256(), 0, 0
    with open_regular(path) as file:
        while piece := file.read(min(PIECE_BYTES, extent["bytes"] - size)):
            found.update(piece)
            size, lines = size + len(piece), lines + piece.count(b"\n")

    if size < extent["bytes"]:
        raise RunError(
            f"{path} was cut: {lines:,} of the {extent['lines']:,} lines before the checkpoint are left; "
            f"{fix}"
        )
    if found.hexdigest() != extent["sha256"]:
        raise RunError(
            f"{path} was altered: its first {extent['lines']:,} lines are not those written before the "
            f"checkpoint; {fix}"
        )


def cut_to(path: Path, extent: Extent) -> None:
    """Drop what came after an extent, without rewriting what stays."""
    if path.exists():
        with path.open("rb+") as file:
            file.truncate(extent["bytes"])
            os.fsync(file.fileno())


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        row = parse_json(line.decode("utf-8", errors="replace"))
    except ValueError:
        return None
    return row if is_row(row) else None
