"""Records of a file of JSON lines. A broken one is counted and skipped; above one in twenty the file is
refused.

A line is broken that is not a JSON object, or an object that its reader cannot use, for a reason it gives.
Not here: documents, whose records may also be text or columns (corpus/readers.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bitnet.errors import DataError, NotFoundError
from bitnet.files import lines_of, open_regular, parse_json

MAX_BROKEN = 0.05
LONGEST_LINE = 16 << 20
MOST_BYTES = 256 << 20  # of a file, whose records are all kept


class JsonLines(NamedTuple):
    """rows: the usable objects, in order. broken: lines left out; first_broken: where and why, or None."""

    rows: list[dict[str, Any]]
    broken: int
    first_broken: str | None


def read_json_lines(path: Path, problem_of: Callable[[dict[str, Any]], str | None]) -> JsonLines:
    """The objects of a file in which `problem_of` finds no problem. Raises DataError above MAX_BROKEN, or
    where nothing is left.
    """
    rows: list[dict[str, Any]] = []
    broken, first = 0, None
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > MOST_BYTES:
                raise DataError(
                    f"{path} has {size:,} bytes, above the {MOST_BYTES:,} that are held in memory; split the "
                    "file"
                )
            for number, line in enumerate(lines_of(file, LONGEST_LINE), start=1):
                if line is not None and not line.strip():
                    continue
                row, problem = _parsed(line, problem_of)
                if row is not None:
                    rows.append(row)
                else:
                    broken, first = broken + 1, first or f"{path}, line {number}: {problem}"
    except OSError as error:
        raise NotFoundError(f"{path} cannot be read ({error.strerror}); give a file of JSON lines") from None
    lines = broken + len(rows)
    if broken > MAX_BROKEN * lines:
        raise DataError(
            f"{broken} of {lines} lines of {path} are broken, more than {MAX_BROKEN:.0%} (first: {first}); "
            "repair the file or make it again"
        )
    if not rows:
        raise DataError(f"{path} has no record; make it again")
    return JsonLines(rows, broken, first)


def held_out_problem(row: Mapping[str, Any]) -> str | None:
    """What is wrong with the mark that keeps a record from training, or None."""
    return None if isinstance(row.get("held_out", False), bool) else "held_out is neither true nor false"


def _parsed(
    line: bytes | None, problem_of: Callable[[dict[str, Any]], str | None]
) -> tuple[dict[str, Any] | None, str | None]:
    """The object, or what is wrong with the line; None is a line that was too long to be read."""
    if line is None:
        return None, f"longer than {LONGEST_LINE:,} bytes"
    try:
        row = parse_json(line)
    except ValueError as error:
        return None, f"not JSON ({error})"
    if not isinstance(row, dict):
        return None, f"a {type(row).__name__}, not an object"
    problem = problem_of(row)
    return (row, None) if problem is None else (None, problem)
