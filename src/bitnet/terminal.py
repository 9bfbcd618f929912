"""Text for a terminal: control characters are shown as something to read, and never reach the terminal.

A run folder, a model's output, a tokenizer, a data file or a file's name may hold an escape sequence that
clears the screen, changes what was printed before or types into the shell. The command line puts `ShownText`
before standard output and standard error, so that everything it prints passes `visible`, whoever wrote it;
the program's own sequences, which rewrite a line of progress, go past it through `send`. Not here: what HTML
pages do with foreign text (report/).
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

_PICTURES = 0x2400  # the Unicode block with one visible character for each control character of ASCII
_C0 = {code: _PICTURES + code for code in range(0x20) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
# Among these is CSI, which is an escape sequence in one character.
_C1 = {code: f"\\x{code:02x}" for code in range(0x80, 0xA0)}
# What turns the direction of writing round, so that a name reads as another; separators that some terminals
# take as line ends; and halves of surrogate pairs, which stand for bytes of a file name that are no UTF-8 and
# cannot be printed.
_OTHER = {
    code: f"\\u{code:04x}"
    for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x2028, 0x2029, *range(0xD800, 0xE000))
}
_SHOWN: dict[int, int | str] = {**_C0, **_C1, **_OTHER}
CLEAR_REST = "\x1b[K\r"  # clear to the end of the line, and return to its beginning
_COLOUR = re.compile(r"(\x1b\[[0-9;]*m)")


def visible(text: str) -> str:
    """The text with every control character as something to read; line breaks and tabs stay."""
    return text.translate(_SHOWN)


def one_line(text: str) -> str:
    """The same for a name in a table or message, where a line break could pass for the program's own line."""
    return visible(text).replace("\n", "␊").replace("\t", "␉")


def visible_but_colours(text: str) -> str:
    """The same with colours kept, for a page of help that a library has coloured."""
    return "".join(part if index % 2 else visible(part) for index, part in enumerate(_COLOUR.split(text)))


class ShownText:
    """A text stream that writes the visible form of everything. All else is the stream's behind it."""

    def __init__(self, stream: TextIO, *, bars: bool = False) -> None:
        """bars: let a carriage return at the beginning of a write through: libraries redraw bars with it."""
        self.stream, self.bars = stream, bars

    def write(self, text: str) -> int:
        """Returns the number of characters that were asked for, as streams do."""
        shown = visible(text)
        if self.bars and text.startswith("\r"):
            shown = "\r" + shown[1:]
        _write(self.stream, shown)
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Each line through `write`."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _write(stream: TextIO, text: str) -> None:
    """Write; what the terminal's encoding lacks is shown by its number."""
    try:
        stream.write(text)
    except UnicodeEncodeError:
        stream.write(text.encode(stream.encoding, "backslashreplace").decode(stream.encoding))


def send(stream: TextIO, sequence: str) -> None:
    """Write the program's own control sequences, which must reach the terminal. Never for foreign text."""
    behind = stream.stream if isinstance(stream, ShownText) else stream
    _write(behind, sequence)


class LiveLine:
    """A line about work in progress on standard error. A terminal rewrites it; elsewhere it is repeated."""

    REWRITTEN_EVERY_S, REPEATED_EVERY_S = 0.2, 5.0

    def __init__(self) -> None:
        self._rewritten = sys.stderr.isatty()
        self._every_s = self.REWRITTEN_EVERY_S if self._rewritten else self.REPEATED_EVERY_S
        self._last = time.monotonic()

    def show(self, line: Callable[[], str]) -> None:
        """Print what `line` returns, unless the last one was printed a moment ago."""
        now = time.monotonic()
        if now - self._last < self._every_s:
            return
        self._last = now
        sys.stderr.write(line() + ("" if self._rewritten else "\n"))
        if self._rewritten:
            send(sys.stderr, CLEAR_REST)
        sys.stderr.flush()


@contextmanager
def shown_output() -> Iterator[None]:
    """Inside, everything that is printed passes `visible`."""
    before = sys.stdout, sys.stderr
    sys.stdout = cast(TextIO, ShownText(before[0]))
    sys.stderr = cast(TextIO, ShownText(before[1], bars=True))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
