"""Lines of metrics: always JSON, read past damage, and cut back without touching what stays."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet.errors import DataError
from bitnet.files import finite
from bitnet.run import metrics
from bitnet.run.metrics import LineWriter, cut_back, last_line, read_lines, tail


def write(path: Path, *rows: object) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def steps(path: Path) -> list[int]:
    return [row["step"] for row in read_lines(path).rows]


def test_every_line_is_on_its_way_to_disk_at_once(tmp_path: Path) -> None:
    """A reader sees each row while the writer still has the file open; later rows are appended."""
    path = tmp_path / "deep" / "scalars.jsonl"
    for step in (1, 2):
        with LineWriter(path) as writer:
            writer.write({"step": step})
            assert steps(path)[-1] == step
    assert steps(path) == [1, 2]


def test_numbers_that_are_not_json_become_null(tmp_path: Path) -> None:
    with LineWriter(tmp_path / "a") as writer:
        writer.write({"step": 1, "loss": math.nan, "norms": [math.inf, 1.0], "inner": {"x": -math.inf}})
    assert json.loads((tmp_path / "a").read_text()) == {
        "step": 1,
        "loss": None,
        "norms": [None, 1.0],
        "inner": {"x": None},
    }


@pytest.mark.slow
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists))
def test_whatever_is_written_is_strict_json(value: object) -> None:
    """allow_nan=False raises for what JSON has no word for; finite numbers come back as they were."""
    back = json.loads(json.dumps(finite({"value": value}), allow_nan=False))["value"]
    assert back == value or "nan" in str(value) or "inf" in str(value)


@pytest.mark.parametrize(
    "tail", ['{"step": 3, "lo', "\n", "[1]\n", "not json\n", '{"loss": 1}\n', '{"step": "3"}\n', "\xff\xfe\n"]
)
def test_a_line_that_is_no_row_is_skipped_and_counted(tmp_path: Path, tail: str) -> None:
    path = tmp_path / "scalars.jsonl"
    write(path, {"step": 1}, {"step": 2})
    with path.open("a", encoding="latin-1") as file:
        file.write(tail)
    assert steps(path) == [1, 2]
    assert read_lines(path).skipped == 1
    assert last_line(path) == {"step": 2}


def test_a_missing_or_empty_file_has_no_rows(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for path in (tmp_path / "none", tmp_path / "empty"):
        assert read_lines(path) == ([], 0)
        assert last_line(path) is None
        cut_back(path, 3)
    assert not (tmp_path / "none").exists()


def test_the_last_line_is_found_however_long_it_is(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    write(path, {"step": 1}, {"step": 2, "text": "x" * 300_000})
    assert (last_line(path) or {})["step"] == 2


@pytest.mark.parametrize("step", [0, 1, 4, 9])
def test_cutting_back_drops_later_rows_and_leaves_the_bytes_before(tmp_path: Path, step: int) -> None:
    path = tmp_path / "scalars.jsonl"
    write(path, *({"step": number, "loss": 1 / number} for number in range(1, 7)))
    before = path.read_bytes()
    cut_back(path, step)
    assert steps(path) == list(range(1, min(step, 6) + 1))
    assert before.startswith(path.read_bytes())


def test_cutting_back_drops_a_half_written_last_line(tmp_path: Path) -> None:
    """Also one of an early enough step: it would run into the next row."""
    path = tmp_path / "scalars.jsonl"
    write(path, {"step": 1})
    for half in ('{"step": 2, "loss"', '{"step": 2}'):
        with path.open("a") as file:
            file.write(half)
        cut_back(path, 2)
        assert path.read_text() == '{"step": 1}\n'


def test_cutting_back_keeps_several_rows_of_one_step(tmp_path: Path) -> None:
    """Samples have one row for each prompt and mode."""
    path = tmp_path / "samples.jsonl"
    write(path, {"step": 5, "mode": "greedy"}, {"step": 5, "mode": "stress"}, {"step": 10, "mode": "greedy"})
    cut_back(path, 5)
    assert steps(path) == [5, 5]


def test_a_line_without_end_is_counted_and_never_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else's metrics may be one line of 10 GB; here the bound is small instead."""
    monkeypatch.setattr(metrics, "LONGEST_LINE", 100)
    path = tmp_path / "scalars.jsonl"
    path.write_text('{"step": 1}\n' + '{"step": 2, "x": "' + "a" * 1000 + '"}\n' + '{"step": 3}\n')
    assert read_lines(path) == ([{"step": 1}, {"step": 3}], 1)
    cut_back(path, 2)
    assert path.read_text().endswith('a"}\n')
    path.write_text("a" * 200_000)
    assert tail(path, window_bytes=64) == ([], 0)
    with LineWriter(path) as writer:
        writer.write({"step": 4})
        assert writer.extent()["bytes"] == path.stat().st_size


def test_more_than_can_be_held_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MOST_BYTES", 20)
    write(tmp_path / "a", *({"step": step} for step in range(3)))
    with pytest.raises(DataError, match="has 36 bytes, more than the 20"):
        read_lines(tmp_path / "a")
