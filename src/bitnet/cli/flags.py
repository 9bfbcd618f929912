"""Typed, strict flags through tyro, with its error boxes condensed to one line.

Not here: the flags of one verb (in its file), and those of verbs that use a trained model (model.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from bitnet.errors import ConfigError, did_you_mean
from bitnet.terminal import send, visible_but_colours

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class JsonFlags:
    """The flag that every verb has."""

    json: bool = False
    """Print the result as JSON on the last line."""


@dataclass(frozen=True, kw_only=True)
class RunFlags(JsonFlags):
    """Flags of every verb that reads or writes runs."""

    runs_dir: Path = Path("runs")
    """Folder that holds the runs."""


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
            send(sys.stdout, visible_but_colours(_without_none(captured.getvalue())))
            raise
        raise ConfigError(_condensed(captured.getvalue(), verb)) from None
    finally:
        if not wants_help:
            os.environ.pop("COLUMNS")
            if columns is not None:
                os.environ["COLUMNS"] = columns


def with_sections(flags: type[T], **sections: Any) -> type[T]:
    """The flags and, for each section, one for every field of a dataclass: --model.hidden-size.

    sections: by name the defaults, or the dataclass itself where its values must be given.
    """
    import tyro

    quiet = tyro.conf.arg(help="")
    fields: list[Any] = [
        (name, Annotated[section, quiet])
        if isinstance(section, type)
        else (name, Annotated[type(section), quiet], dataclasses.field(default=section))
        for name, section in sections.items()
    ]
    made = dataclasses.make_dataclass(flags.__name__, fields, bases=(flags,), frozen=True, kw_only=True)
    made.__doc__ = flags.__doc__
    return made


Action = tuple[type[Any], Callable[[Any], int]]
"""The flags of an action, and what it does with them."""


def run_action(verb: str, usage: str, actions: Mapping[str, Action], arguments: Sequence[str]) -> int:
    """One of the actions of a verb, as in `bitnet tokenizer train`. Returns its exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage)
        if arguments:
            return 0
        raise ConfigError(f"say what to do: {', or '.join(f'bitnet {verb} {action}' for action in actions)}")

    action, *rest = arguments
    if action not in actions:
        raise ConfigError(f"there is no `bitnet {verb} {action}`.{did_you_mean(action, actions)}")
    flags, run = actions[action]
    return run(parse(flags, rest, f"{verb} {action}"))


def _without_none(page: str) -> str:
    """The help with STR where tyro writes {None}|STR for a flag that may be left out."""
    usage, gap, tables = page.partition("\n\n")
    framed = re.sub(r"(\{None\}\|)(\w+)", lambda match: match[2] + " " * len(match[1]), tables)
    return usage.replace("{None}|", "") + gap + framed


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
    return f"{_plain(message)}.{hint} See: bitnet {verb} --help"


def _plain(message: str) -> str:
    """The parser's message in the words of this program; one that is not known stays as it is."""
    if message.startswith("Missing from"):
        missing = re.findall(r"(--\S+ \S+|[A-Z]+(?:\.\.\.)?) (.+?)\.? \(required\)", message)
        return "; ".join(f"{name} is missing: {about}" for name, about in missing) or message

    wrong = re.match(r"Error parsing (--\S+): .*(int\(\) with base 10|float): '(.*)'", message)
    if wrong:
        kind = "a whole number" if wrong[2].startswith("int") else "a number"
        return f"{wrong[1]} is {wrong[3]!r}, which is not {kind}"

    wrong = re.match(r"invalid choice ('.*') for argument '(--\S+)'\. Expected one of \((.*)\)", message)
    if wrong:
        choices = wrong[3].replace("'None', ", "").replace("'", "").rstrip(",")
        return f"{wrong[2]} is {wrong[1]}; it must be one of {choices}"
    return re.sub(r"Missing value for argument '(--\S+)'\. Expected .* values?", r"\1 needs a value", message)
