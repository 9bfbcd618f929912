"""Records of a file of JSON lines: a broken one is counted, many of them stop the reading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bitnet.data import json_lines
from bitnet.data.json_lines import read_json_lines
from bitnet.errors import DataError, NotFoundError


def without_text(row: dict[str, Any]) -> str | None:
    return None if isinstance(row.get("text"), str) else "no text"


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


GOOD = ['{"text": "a"}'] * 19


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{half", "not JSON"),
        ("[1]", "a list, not an object"),
        ('{"text": 3}', "no text"),
        ('{"text": NaN}', "not JSON"),
    ],
)
def test_one_in_twenty_is_left_out_and_the_first_is_named(tmp_path: Path, line: str, why: str) -> None:
    found = read_json_lines(write(tmp_path / "f", *GOOD[:2], line, *GOOD[2:]), without_text)
    assert found.rows == [{"text": "a"}] * 19
    assert found.broken == 1
    assert found.first_broken is not None
    assert found.first_broken.startswith(f"{tmp_path / 'f'}, line 3: ")
    assert why in found.first_broken


def test_more_than_one_in_twenty_stop_the_reading(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"2 of 21 lines.*more than 5%.*line 20"):
        read_json_lines(write(tmp_path / "f", *GOOD, "x", "y"), without_text)


def test_empty_lines_are_no_records(tmp_path: Path) -> None:
    assert read_json_lines(write(tmp_path / "f", "", GOOD[0], "  "), without_text).broken == 0
    with pytest.raises(DataError, match="no record"):
        read_json_lines(write(tmp_path / "f", "", ""), without_text)


def test_a_line_without_end_is_broken_and_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_lines, "LONGEST_LINE", 100)
    found = read_json_lines(write(tmp_path / "f", *GOOD, f'{{"text": "{"x" * 200}"}}'), without_text)
    assert (len(found.rows), found.broken) == (19, 1)
    assert "longer than 100 bytes" in str(found.first_broken)


def test_a_file_that_is_too_large_or_missing_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotFoundError, match="cannot be read"):
        read_json_lines(tmp_path / "none", without_text)
    monkeypatch.setattr(json_lines, "MOST_BYTES", 20)
    with pytest.raises(DataError, match="above the 20"):
        read_json_lines(write(tmp_path / "f", *GOOD), without_text)
