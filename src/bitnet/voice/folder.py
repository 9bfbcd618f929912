"""The folder of generated data: a journal that survives a kill, then the results, manifest and data card.

The first line of the journal has the settings. Each further line is one finished item, appended and handed to
the system at once. A line that was only half written is cut off, and its item is generated again. At the end
the other files are made from the journal. Each is written under a temporary name and renamed, so a reader
sees a whole file or none. The data card (README.md) says who made the data, from what, and what was left out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from bitnet.errors import DataError, RunError
from bitnet.files import json_text, lock, open_to_append, parse_json, write_atomic
from bitnet.typed import check_types

JOURNAL = "journal.jsonl"
MAX_BYTES = 256 << 20  # of a journal, which is held in memory
LICENCE = (
    "Text that a language model wrote is under the terms of that model; the built-in rules and topics are "
    "under Apache-2.0."
)


class Journal:
    """The finished items of one folder, and room for more."""

    def __init__(self, file: IO[bytes], rows: list[dict[str, Any]]) -> None:
        self._file, self.rows = file, rows

    def append(self, row: dict[str, Any]) -> None:
        """Record a finished item."""
        self._file.write(_line(row).encode())
        self._file.flush()
        self.rows.append(row)


@contextmanager
def open_journal(
    folder: Path, settings: Mapping[str, Any], types: Mapping[str, Any], required: Collection[str]
) -> Iterator[Journal]:
    """Begin or continue the journal of a folder. Raises DataError if it was begun with other settings.

    types: of the keys of an item; required: the keys that each item has.
    """
    path = folder / JOURNAL
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open_to_append(path)
    except OSError as error:
        raise DataError(f"{folder} cannot be written ({error.strerror}); choose another --out") from None
    with file:
        if not lock(file):
            raise RunError(f"another process is writing to {folder}; wait for it or choose another --out")
        rows = _read(file, path)
        if not rows and any(other.name != JOURNAL for other in folder.iterdir()):
            raise DataError(f"{folder} holds other files; name a new folder with --out")

        journal = Journal(file, rows)
        if not rows:
            journal.append({"settings": dict(settings)})
        _check_settings(rows.pop(0).get("settings"), settings, folder)
        for number, row in enumerate(rows, start=2):
            check_types(row, types, f"{path}, line {number},", required)

        yield journal
        os.fsync(file.fileno())


def _read(file: IO[bytes], path: Path) -> list[dict[str, Any]]:
    """The whole lines. What follows the last of them is cut off the file."""
    size = file.seek(0, os.SEEK_END)
    if size > MAX_BYTES:
        raise DataError(
            f"{path} has {size:,} bytes, more than the limit of {MAX_BYTES:,}; choose another --out"
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
            raise _damaged(path, len(rows) + 1, f"is damaged ({error})") from None
        if not isinstance(row, dict):
            raise _damaged(path, len(rows) + 1, "is not a JSON object")
        rows.append(row)
        whole += len(line)
    file.truncate(whole)
    return rows


def _damaged(path: Path, number: int, problem: str) -> DataError:
    return DataError(f"{path}, line {number} {problem}; delete the line and that item is regenerated")


def _check_settings(found: Any, wanted: Mapping[str, Any], folder: Path) -> None:
    if not isinstance(found, dict):
        raise DataError(f"{folder / JOURNAL} does not begin with its settings; choose another --out")
    other = [
        f"{key} {found.get(key)!r}, now {wanted[key]!r}" for key in wanted if found.get(key) != wanted[key]
    ]
    if other:
        raise DataError(
            f"{folder} was begun with other settings ({'; '.join(other)}); repeat them, or name a new folder "
            "with --out"
        )


def write_results(folder: Path, files: Mapping[str, str], manifest: dict[str, Any], card: str) -> None:
    """Write the files that others read, then manifest and card. Raises DataError if the disk is full."""
    for name, text in {**files, "manifest.json": json_text(manifest), "README.md": card}.items():
        try:
            write_atomic(folder / name, text)
        except OSError as error:
            raise DataError(
                f"{folder / name} cannot be written ({error.strerror}); free some space and repeat "
                "the command"
            ) from None


def json_lines(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as text of JSON lines."""
    return "".join(map(_line, rows))


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def data_card(
    title: str, about: str, manifest: Mapping[str, Any], facts: Mapping[str, str], files: str
) -> str:
    """The data card in Markdown: what is in the manifest of any folder, then `facts`, then the files."""
    teacher = manifest["teacher"]
    table = {
        "Teacher": f"`{teacher['name']}` ({teacher['kind']})",
        "Voice": f"`{manifest['voice']}`, sha256 of its file {manifest['voice_sha256']}",
        "Seed": str(manifest["seed"]),
        **facts,
    }
    rows = "\n".join(f"| {name} | {value} |" for name, value in table.items())
    return f"# {title}\n\n{about}\n\n| | |\n| --- | --- |\n{rows}\n\n{LICENCE}\n\n## Files\n\n{files}\n"


def counted(counts: Mapping[str, int]) -> str:
    """Counts by reason in words; "none" if all are 0."""
    return (
        ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in counts.items() if count) or "none"
    )
