"""Work that survives a kill: one line for each finished piece, and a file made from all of them at the end.

The first line holds the settings; each further line is a whole piece of work, appended and handed to the
system at once. A half-written last line is cut off and its piece is done again. The results that others read
are written from the journal under a temporary name and renamed: a reader sees all of them or none.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from bitnet.errors import DataError, RunError
from bitnet.files import lock, open_to_append, parse_json, write_atomic
from bitnet.typed import check_types

FILE = "journal.jsonl"
MAX_BYTES = 256 << 20


class Journal:
    """The finished pieces of one folder, and room for more."""

    def __init__(self, file: IO[bytes], rows: list[dict[str, Any]]) -> None:
        self._file, self.rows = file, rows

    def append(self, row: dict[str, Any]) -> None:
        """Finish a piece."""
        self._file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        self.rows.append(row)


@contextmanager
def open_journal(
    folder: Path, settings: Mapping[str, Any], types: Mapping[str, Any], required: Collection[str]
) -> Iterator[Journal]:
    """The journal of a folder, begun or continued. Raises DataError where it belongs to other settings.

    types: of the keys of a piece; required: keys that each piece has.
    """
    path = folder / FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open_to_append(path)
    except OSError as error:
        raise DataError(f"{folder} cannot be written ({error.strerror}); choose another --out") from None
    with file:
        if not lock(file):
            raise RunError(f"another process is writing to {folder}; wait for it or choose another --out")
        rows = _read(file, path)
        if not rows and any(other.name != FILE for other in folder.iterdir()):
            raise DataError(f"{folder} holds other files; name a new folder with --out")
        if not rows:
            rows = [{"settings": dict(settings)}]
            file.write(json.dumps(rows[0], ensure_ascii=False).encode() + b"\n")
            file.flush()
        _same_settings(rows[0].get("settings"), settings, folder)
        for number, row in enumerate(rows[1:], start=2):
            check_types(row, types, f"{path}, line {number},", required)
        yield Journal(file, rows[1:])
        os.fsync(file.fileno())


def _read(file: IO[bytes], path: Path) -> list[dict[str, Any]]:
    """Whole lines; what follows the last of them is cut off."""
    size = file.seek(0, os.SEEK_END)
    if size > MAX_BYTES:
        raise DataError(
            f"{path} has {size:,} bytes, more than the {MAX_BYTES:,} that are held in memory; choose another "
            "--out"
        )
    file.seek(0)
    rows: list[dict[str, Any]] = []
    whole = 0
    for line in file:
        if not line.endswith(b"\n"):
            break
        try:
            row = parse_json(line)
        except ValueError as error:
            raise DataError(
                f"{path}, line {len(rows) + 1} is damaged ({error}); delete that line to have its piece done "
                "again"
            ) from None
        if not isinstance(row, dict):
            raise DataError(
                f"{path}, line {len(rows) + 1} is no object; delete that line to have its piece done again"
            )
        rows.append(row)
        whole += len(line)
    file.truncate(whole)
    return rows


def _same_settings(found: Any, wanted: Mapping[str, Any], folder: Path) -> None:
    if not isinstance(found, dict):
        raise DataError(
            f"{folder / FILE} does not begin with its settings; it is no journal of this command, so choose "
            "another --out"
        )
    other = [
        f"{key} {found.get(key)!r}, now {wanted[key]!r}" for key in wanted if found.get(key) != wanted[key]
    ]
    if other:
        raise DataError(
            f"{folder} was begun with other settings ({'; '.join(other)}); repeat them, or name a new folder "
            "with --out"
        )


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """JSON lines, whole or not at all."""
    write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_whole(path: Path, text: str) -> None:
    """A text file, whole or not at all."""
    try:
        write_atomic(path, text)
    except OSError as error:
        raise DataError(
            f"{path} cannot be written ({error.strerror}); free some space and repeat the command"
        ) from None
