"""Typed, strict flags through tyro, with its error boxes condensed to one line."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from bitnet.errors import ConfigError
from bitnet.terminal import send, visible_but_colours

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class RunFlags:
    """Flags of every verb that reads or writes runs."""

    runs_dir: Path = Path("runs")
    """Folder that holds the runs."""
    json: bool = False
    """Print the result as JSON on the last line."""


def parse(flags: type[T], arguments: Sequence[str], verb: str) -> T:
    """The flags of one verb. Raises ConfigError for anything unknown or of the wrong type."""
    import tyro

    captured = _Captured()
    columns = os.environ.get("COLUMNS")
    wants_help = "-h" in arguments or "--help" in arguments
    if not wants_help:
        os.environ["COLUMNS"] = "2000"  # keep each message on one line
    try:
        with (
            contextlib.redirect_stderr(captured),
            contextlib.redirect_stdout(captured) if wants_help else contextlib.nullcontext(),
        ):
            parsed: T = tyro.cli(
                flags, args=list(arguments), prog=f"bitnet {verb}", config=(tyro.conf.FlagCreatePairsOff,)
            )
            return parsed
    except SystemExit as end:
        if not end.code:
            send(sys.stdout, visible_but_colours(captured.getvalue()))
            raise
        raise ConfigError(_condensed(captured.getvalue(), verb)) from None
    finally:
        if not wants_help:
            os.environ.pop("COLUMNS")
            if columns is not None:
                os.environ["COLUMNS"] = columns


class _Captured(io.StringIO):
    """Takes what the parser prints; like standard output to it, so that help keeps its colours and frames."""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(sys.__stdout__, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        return sys.__stdout__ is not None and sys.__stdout__.isatty()


def last_value(words: Sequence[str], flag: str) -> str | None:
    """The value of a flag that decides which other flags there are; given twice, the last one counts, as for
    every flag.

    flag: as it is documented, with dashes; the parser takes underscores too, and so does this.
    """
    found = None
    for index, word in enumerate(words):
        name, equals, value = word.partition("=")
        if not name.startswith("--") or name.replace("_", "-") != flag:
            continue
        if equals:
            found = value
        elif index + 1 < len(words):
            found = words[index + 1]
    return found


def _condensed(box: str, verb: str) -> str:
    """The message inside tyro's box, and the nearest flag where it offers one.

    The box has its title in the upper border, or, on terminals without Unicode, in a section of its own.
    """
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    lines = [line.strip("│ \t") for line in plain.splitlines()]
    sections: list[list[str]] = [[]]
    for line in lines:
        if line and set(line) <= set("-─"):
            sections.append([])
        elif line and line[0] not in "╭╰":
            sections[-1].append(line)
    message = " ".join(sections[0] if "╭" in plain or len(sections) == 1 else sections[1]).rstrip(".")
    near = [line.split()[0] for section in sections for line in section if line.startswith("--")]
    hint = f' Did you mean "{near[0]}"?' if near and "nrecognized" in message else ""
    return f"{message}.{hint} See: bitnet {verb} --help"
