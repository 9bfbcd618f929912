"""Control characters are shown, not executed, and nothing else is changed."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet.terminal import LiveLine, ShownText, one_line, send, shown_output, visible, visible_but_colours


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, ünïcode 漢字 🐿", "plain text, ünïcode 漢字 🐿"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("\x1b[2J\x1b]0;title\x07", "␛[2J␛]0;title␇"),
        ("good\rbad", "good␍bad"),
        ("a\x00b\x08c\x7f", "a␀b␈c␡"),
        ("\x9b31m", "\\x9b31m"),
        ("user\u202etxt.exe", "user\\u202etxt.exe"),
        ("\udcff", "\\udcff"),
    ],
)
def test_what_is_shown(text: str, shown: str) -> None:
    assert visible(text) == shown


@given(st.text())
def test_no_control_character_is_left(text: str) -> None:
    shown = visible(text)
    assert not any((ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160 for c in shown)
    assert visible(shown) == shown
    shown.encode()


def test_a_name_stays_on_its_line() -> None:
    assert one_line("run\n\x1b[31mdone") == "run␊␛[31mdone"


def test_help_keeps_colours_and_nothing_else() -> None:
    assert visible_but_colours("\x1b[1mbold\x1b[0m \x1b[2J") == "\x1b[1mbold\x1b[0m ␛[2J"


def test_a_stream_shows_foreign_text_and_lets_the_programs_own_sequences_through() -> None:
    behind = io.StringIO()
    stream = ShownText(behind)
    print("evil \x1b[2J", file=stream)
    send(stream, "\r\x1b[K")  # type: ignore[arg-type]
    assert behind.getvalue() == "evil ␛[2J\n\r\x1b[K"
    assert not stream.isatty()


def test_a_progress_bar_may_go_to_the_beginning_of_its_line() -> None:
    behind = io.StringIO()
    bar = ShownText(behind, bars=True)
    bar.write("\r 10%")
    bar.write("text\rover")
    assert behind.getvalue() == "\r 10%text␍over"


def test_what_a_terminal_cannot_encode_is_shown_by_number(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w", encoding="ascii") as behind:
        ShownText(behind).write("é \x1b")
    assert (tmp_path / "out").read_text() == "\\xe9 \\u241b"


def test_the_streams_are_put_back() -> None:
    before = sys.stdout, sys.stderr
    with shown_output():
        assert isinstance(sys.stdout, ShownText)
    assert (sys.stdout, sys.stderr) == before


@pytest.mark.parametrize(("terminal", "shown"), [(True, "one\x1b[K\rthree\x1b[K\r"), (False, "one\nthree\n")])
def test_a_line_of_progress_is_rewritten_on_a_terminal_and_repeated_elsewhere(
    terminal: bool, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal)
    monkeypatch.setattr("sys.stderr", stream)
    times = iter((0.0, 6.0, 6.1, 12.0))  # made, then shown three times
    monkeypatch.setattr("time.monotonic", lambda: next(times))
    line = LiveLine()
    for text in ("one", "two, too soon", "three"):
        line.show(lambda text=text: text)  # type: ignore[misc]
    assert stream.getvalue() == shown
