"""Readers: each kind of file gives its documents, says what is broken, and goes on from a position."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bitnet.corpus.documents import LocalFiles
from bitnet.corpus.readers import Record
from bitnet.errors import ConfigError, DataError, NotFoundError
from corpora import PACKERS, stories, write_jsonl, write_txt

TEXTS = ["One.", "Two\n\nlines.", "Drei, äöü 日本."]


def texts_of(*paths: Path | str, column: str = "text") -> list[str | None]:
    return [record.text for record in LocalFiles(paths, column).open()]


def records_of(path: Path, raw: bytes) -> list[Record]:
    path.write_bytes(raw)
    return list(LocalFiles([path]).open())


@pytest.mark.parametrize("packed", ["", *PACKERS])
@pytest.mark.parametrize("write", [write_txt, write_jsonl])
def test_text_and_json_lines_plain_and_compressed(
    tmp_path: Path, packed: str, write: Callable[..., Path]
) -> None:
    kind = ".txt" if write is write_txt else ".jsonl"
    raw = write(tmp_path / f"plain{kind}", TEXTS).read_bytes()
    path = tmp_path / f"data{kind}{packed}"
    path.write_bytes(PACKERS[packed](raw) if packed else raw)
    assert texts_of(path) == TEXTS


def test_parquet(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": TEXTS, "n": [1, 2, 3]}), tmp_path / "a.parquet")
    assert texts_of(tmp_path / "a.parquet") == TEXTS
    with pytest.raises(NotFoundError, match="has no column 'body'; it has: n, text"):
        texts_of(tmp_path / "a.parquet", column="body")


def test_lists_of_sections_are_joined_by_line_breaks(tmp_path: Path) -> None:
    path = tmp_path / "tales.jsonl"
    path.write_text(json.dumps({"name": "Snow-man", "sections": ["It is cold.", "He sighed."]}) + "\n")
    assert texts_of(path, column="sections") == ["It is cold.\nHe sighed."]
    with pytest.raises(NotFoundError, match=r"it has: name, sections. Choose one with --column"):
        texts_of(path)


def test_text_file_without_delimiters_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("\ufeffA line.\n\nAnother.\n", encoding="utf-8")
    assert texts_of(tmp_path / "book.txt") == ["A line.\n\nAnother."]


def test_delimiter_counts_only_as_a_line_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one <|endoftext|> still one\r\n<|endoftext|>\r\ntwo")
    assert texts_of(tmp_path / "a.txt") == ["one <|endoftext|> still one", "two"]


def test_folders_and_patterns_in_a_fixed_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    for name in ("b.txt", "a.txt", "in/c.txt"):
        write_txt(tmp_path / name, [name])
    (tmp_path / "README.md").write_text("not data")
    assert texts_of(tmp_path) == ["a.txt", "b.txt", "in/c.txt"]
    assert texts_of(str(tmp_path / "*.txt")) == ["a.txt", "b.txt"]
    monkeypatch.chdir(tmp_path)
    assert texts_of("in/*.txt", "b.txt") == ["in/c.txt", "b.txt"]


def test_what_is_not_there_or_not_read(tmp_path: Path) -> None:
    write_txt(tmp_path / "stories.txt", ["x"])
    with pytest.raises(NotFoundError, match=r'Did you mean "stories\.txt"'):
        LocalFiles([tmp_path / "story.txt"])
    (tmp_path / "picture.png").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"picture.png is of a kind that is not read; there is: .txt"):
        LocalFiles([tmp_path / "picture.png"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFoundError, match="holds no file that can be read"):
        LocalFiles([tmp_path / "empty"])
    with pytest.raises(ConfigError, match="--data"):
        LocalFiles([])


def test_broken_and_empty_records_are_handed_on(tmp_path: Path) -> None:
    lines = [
        b'{"text": "good"}',
        b"{",
        b"[1]",
        b'{"text": 3}',
        b'{"text": " "}',
        b'{"other": 1}',
        b'{"text": "\\ud800"}',
        b"",
        b'{"text": "end"}',
    ]
    found = records_of(tmp_path / "a.jsonl", b"\n".join(lines))
    assert [record.text for record in found if record.text] == ["good", "end"]
    problems = [record.problem for record in found if record.problem]
    assert [problem.split(" (")[0] for problem in problems] == [
        "not JSON",
        "a list, not an object",
        "a int in the column, not text",
        "empty",
        "empty",
        "half of a surrogate pair, which UTF-8 cannot represent",
    ]


def test_binary_and_empty_files(tmp_path: Path) -> None:
    assert records_of(tmp_path / "a.txt", b"") == [Record(None, "empty")]
    assert records_of(tmp_path / "b.txt", b" \n\n") == [Record(None, "empty")]
    assert records_of(tmp_path / "c.txt", b"\x7fELF\x00\x01")[0].problem == "binary data, not text"
    assert "not UTF-8" in str(records_of(tmp_path / "d.txt", b"caf\xe9 au lait")[0].problem)
    assert records_of(tmp_path / "e.txt", b"one\n<|endoftext|>\n\n<|endoftext|>\n") == [
        Record("one"),
        Record(None, "empty"),
    ]


@pytest.mark.parametrize("packed", PACKERS)
def test_compressed_file_that_was_cut_short_is_named(tmp_path: Path, packed: str) -> None:
    raw = write_jsonl(tmp_path / "plain.jsonl", stories(500)).read_bytes()
    path = tmp_path / f"cut.jsonl{packed}"
    whole = PACKERS[packed](raw)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cut\.jsonl.*cut short or damaged"):
        texts_of(path)


def test_parquet_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 or so")
    with pytest.raises(DataError, match=r"a\.parquet is cut short or damaged"):
        texts_of(tmp_path / "a.parquet")


@pytest.mark.parametrize("cut", [0, 1, 3, 4, 7, 8])
def test_reading_goes_on_from_any_position(tmp_path: Path, cut: int) -> None:
    write_txt(tmp_path / "a.txt", stories(4))
    write_jsonl(tmp_path / "b.jsonl", stories(4, first=4))
    source = LocalFiles([tmp_path])
    reading = source.open()
    rows = iter(reading)
    first = [next(rows).text for _ in range(cut)]
    position = json.loads(json.dumps(reading.position()))
    assert first + [record.text for record in source.open(position)] == stories(8)


def test_fraction_grows_to_one(tmp_path: Path) -> None:
    for index in range(3):
        write_txt(tmp_path / f"{index}.txt", stories(5))
    reading = LocalFiles([tmp_path]).open()
    shares = [reading.fraction() for _ in reading]
    assert shares == sorted(shares)
    assert shares[0] < 0.5
    assert shares[-1] == 1.0


def test_memory_is_bounded_by_the_longest_document(tmp_path: Path) -> None:
    path = tmp_path / "many.txt"
    with path.open("w") as file:
        for _ in range(40):
            file.write("word " * 40_000 + "\n<|endoftext|>\n")  # 8 MB in documents of 0.2 MB
    tracemalloc.start()
    assert sum(1 for _ in LocalFiles([path]).open()) == 40
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3e6


@pytest.mark.skipif(
    "BITNET_TEST_DATA" not in os.environ, reason="BITNET_TEST_DATA does not name the folder with real text"
)
def test_real_files() -> None:
    data = Path(os.environ["BITNET_TEST_DATA"])
    assert len(texts_of(data / "tinystories" / "train.txt")) == 4986
    assert len(texts_of(data / "tinystories" / "validation.txt")) == 617
    assert len(texts_of(data / "fairytaleqa" / "stories.jsonl", column="sections")) == 255
    book = next(iter(LocalFiles([data / "books" / "books-00.jsonl.xz"]).open())).text
    assert book is not None
    assert len(book) > 10_000
