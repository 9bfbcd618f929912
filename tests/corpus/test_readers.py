"""Data from anybody is read within bounds: compressed bombs, endless lines, floods of files. Memory is
measured, with small bounds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bitnet.corpus import documents, readers
from bitnet.corpus.documents import LocalFiles
from bitnet.data import json_lines
from bitnet.data.json_lines import read_json_lines
from bitnet.errors import ConfigError, DataError, NotFoundError
from corpora import PACKERS

MIB = 1 << 20
BOMB = 48 * MIB


@pytest.fixture
def small_bounds(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Documents of a MiB at most, and a peak of memory to match."""
    monkeypatch.setattr(readers, "LONGEST_DOCUMENT", MIB)
    monkeypatch.setattr(readers, "LONGEST_LINE", MIB)
    tracemalloc.start()
    yield
    tracemalloc.stop()


def peak() -> float:
    return tracemalloc.get_traced_memory()[1] / MIB


@pytest.mark.slow
@pytest.mark.usefixtures("small_bounds")
@pytest.mark.parametrize("kind", [".txt", ".jsonl"])
@pytest.mark.parametrize("packed", PACKERS)
def test_a_compressed_bomb_is_one_broken_record(kind: str, packed: str, tmp_path: Path) -> None:
    """48 MiB of one letter in some 50 kB, and a document after it, which is read."""
    path = tmp_path / f"bomb{kind}{packed}"
    after = b"\n<|endoftext|>\nA dog.\n<|endoftext|>\n" if kind == ".txt" else b'"}\n{"text": "A dog."}\n'
    before = b"" if kind == ".txt" else b'{"text": "'
    path.write_bytes(PACKERS[packed](before + b"a" * BOMB + after))
    tracemalloc.reset_peak()
    records = list(LocalFiles([path]).open())
    assert peak() < 16
    assert [record.text for record in records] == [None, "A dog."]
    assert records[0].problem is not None
    assert "longer than" in records[0].problem


@pytest.mark.slow
@pytest.mark.usefixtures("small_bounds")
def test_many_lines_without_a_delimiter_are_no_document_either(tmp_path: Path) -> None:
    path = tmp_path / "dump.txt"
    path.write_bytes((b"a" * 69 + b"\n") * (BOMB // 70))
    tracemalloc.reset_peak()
    assert [record.text for record in LocalFiles([path]).open()] == [None]
    assert peak() < 16


def test_a_document_of_just_the_longest_size_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "LONGEST_DOCUMENT", 10)
    path = tmp_path / "a.txt"
    path.write_text("123456789\n<|endoftext|>\n1234567890\n<|endoftext|>\n")
    monkeypatch.setattr(readers, "LONGEST_DOCUMENT", 14)
    assert [record.text for record in LocalFiles([path]).open()] == ["123456789", "1234567890"]


def test_a_group_of_rows_too_large_to_decode_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"text": ["a" * 1000 + str(i) for i in range(100)], "id": list(range(100))}), path
    )
    assert len(list(LocalFiles([path]).open())) == 100
    monkeypatch.setattr(readers, "LARGEST_ROW_GROUP", 10_000)
    with pytest.raises(DataError, match="write it again with smaller groups"):
        list(LocalFiles([path]).open())


@pytest.mark.usefixtures("small_bounds")
def test_a_line_of_empty_lists_is_not_parsed(tmp_path: Path) -> None:
    """As objects they take thirty times the memory of their text: 275 kB of .gz reached 1.6 GB."""
    path = tmp_path / "lists.jsonl"
    path.write_text('{"text": "x", "more": [' + "[]," * MIB + "[]]}\n" + '{"text": "A dog."}\n')
    tracemalloc.reset_peak()
    records = list(LocalFiles([path]).open())
    assert peak() < 16
    assert [record.text for record in records] == [None, "A dog."]
    assert "line longer than" in str(records[0].problem)


READ = """
import sys
import pyarrow
from bitnet.corpus import readers
from bitnet.corpus.documents import LocalFiles
readers.LARGEST_BATCH = readers.LONGEST_DOCUMENT = 1 << 20
records = list(LocalFiles([sys.argv[1]]).open())
used = sum(record.text is not None for record in records)
print(len(records), used, pyarrow.default_memory_pool().max_memory() >> 20)
"""


def repeated(texts: int, lists: bool) -> pa.Table:
    """One text of 256 KiB, stored once and meant many times."""
    column = pa.DictionaryArray.from_arrays(pa.array([0] * texts, pa.int32()), pa.array(["a" * (MIB // 4)]))
    return pa.table(
        {"text": pa.ListArray.from_arrays(pa.array([0, texts], pa.int32()), column) if lists else column}
    )


@pytest.mark.slow
@pytest.mark.parametrize(("lists", "found"), [(False, (400, 400)), (True, (1, 0))], ids=["rows", "one list"])
def test_a_text_that_parquet_stores_once_and_repeats_is_not_written_out_at_once(
    lists: bool, found: tuple[int, int], tmp_path: Path
) -> None:
    """A file of 524 bytes reached 3.1 GB. 100 MiB of text here, of which Arrow may hold a few at a time."""
    path = tmp_path / "bomb.parquet"
    pq.write_table(repeated(400, lists), path, compression="zstd", store_schema=False)
    assert path.stat().st_size < 2000
    done = subprocess.run([sys.executable, "-c", READ, str(path)], check=True, capture_output=True, text=True)
    records, texts, arrow_mib = map(int, done.stdout.split())
    assert (records, texts) == found
    assert arrow_mib < 16


def test_lists_in_parquet_are_texts_or_are_counted_as_broken(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [["a", "b"], ["a"], None, [None, "c"]]}), path)
    assert [record.text for record in LocalFiles([path]).open()] == ["a\nb", "a", None, None]
    pq.write_table(pa.table({"text": [[{"role": "user"}], [{"role": "bot"}]]}), path)
    problems = [str(record.problem) for record in LocalFiles([path]).open()]
    assert len(problems) == 2
    assert all("not text" in problem for problem in problems)


def test_a_folder_of_too_many_files_and_one_of_loops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MOST_FILES", 3)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "loop").symlink_to(tmp_path)
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text("A dog.")
    assert len(LocalFiles([tmp_path]).files) == 3
    (tmp_path / "d.txt").write_text("A cat.")
    for named in (tmp_path, tmp_path / "*.txt"):
        with pytest.raises(DataError, match="more than 3 files"):
            LocalFiles([named])


def test_pipes_and_devices_are_no_data(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "zero.txt").symlink_to("/dev/zero")
    for path in (tmp_path / "pipe.txt", tmp_path / "zero.txt", tmp_path):
        with pytest.raises((NotFoundError, ConfigError)):
            LocalFiles([path])
    with pytest.raises((NotFoundError, DataError)):
        read_json_lines(tmp_path / "pipe.txt", lambda row: None)


def test_lines_of_conversations_are_bounded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_lines, "LONGEST_LINE", 1000)
    path = tmp_path / "answers.jsonl"
    path.write_text(
        "".join(json.dumps({"n": n}) + "\n" for n in range(40)) + '{"n": "' + "a" * 100_000 + '"}\n'
    )
    found = read_json_lines(path, lambda row: None)
    assert (len(found.rows), found.broken) == (40, 1)
    assert found.first_broken == f"{path}, line 41: longer than 1,000 bytes"
    monkeypatch.setattr(json_lines, "MOST_BYTES", 1000)
    with pytest.raises(DataError, match="split the file"):
        read_json_lines(path, lambda row: None)
