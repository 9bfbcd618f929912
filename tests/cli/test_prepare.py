"""`bitnet prepare` with documents; its other use, an experiment's text, is tested in test_bad_input.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitnet.data.shards import Shards
from conftest import Command
from corpora import small_tokenizer, stories, write_jsonl, write_txt


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    small_tokenizer().save(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def test_files_become_shards_and_the_same_command_finds_them(
    bitnet: Command, tokenizer: Path, tmp_path: Path
) -> None:
    write_txt(tmp_path / "a.txt", stories(200))
    write_jsonl(tmp_path / "b.jsonl", [*stories(100, first=200), ""])
    words = [
        "prepare",
        "--data",
        tmp_path / "a.txt",
        tmp_path / "b.jsonl",
        "--tokenizer",
        tokenizer,
        "--out",
        tmp_path / "out",
        "--json",
    ]
    first = bitnet(*words)
    assert first.code == 0, first.err
    assert first.json["documents"] + first.json["held_out_documents"] == 300
    assert first.json["empty"] == 1
    assert "left out" in first.err
    shards = Shards.open(tmp_path / "out")
    assert (shards.train.tokens, shards.held_out.tokens) == (
        first.json["tokens"],
        first.json["held_out_tokens"],
    )
    assert bitnet(*words).json == first.json


def test_validation_limits_and_column(bitnet: Command, tokenizer: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "a.jsonl", stories(50), column="body")
    validation = write_jsonl(tmp_path / "v.jsonl", stories(5), column="body")
    words = [
        "prepare",
        "--data",
        data,
        "--validation",
        validation,
        "--tokenizer",
        tokenizer,
        "--max-documents",
        20,
    ]
    result = bitnet(*words, "--column", "body", "--out", tmp_path / "out", "--json")
    assert result.code == 0, result.err
    assert (
        result.json["documents"],
        result.json["held_out_documents"],
        result.json["equal_to_validation"],
    ) == (20, 5, 5)
    wrong = bitnet(*words, "--out", tmp_path / "other")
    assert wrong.code == 2
    assert "has no column 'text'; it has: body, id" in wrong.err


@pytest.mark.slow
def test_a_data_set_by_folder_goes_through_the_hubs_calls(
    bitnet: Command, tokenizer: Path, tmp_path: Path
) -> None:
    (tmp_path / "set").mkdir()
    write_jsonl(tmp_path / "set" / "train-0.jsonl", stories(60))
    result = bitnet(
        "prepare",
        "--dataset",
        tmp_path / "set",
        "--tokenizer",
        tokenizer,
        "--out",
        tmp_path / "out",
        "--json",
    )
    assert result.code == 0, result.err
    assert result.json["documents"] + result.json["held_out_documents"] == 60


def test_an_experiments_data_settings_are_flags_here_too(bitnet: Command, tmp_path: Path) -> None:
    """The page of arithmetic documents `--data.expressions` for prepare, which knew only its own flags."""
    words = ["prepare", "arithmetic", "--data.expressions", 2000, "--data.max-operand", 30, "--count", 400]
    result = bitnet(*words, "--out", tmp_path / "a.txt")
    assert result.code == 0, result.err
    lines = (tmp_path / "a.txt").read_text().splitlines()
    assert len(lines) == 400
    assert any(line.startswith("(") for line in lines)
    assert all(eval(left) == int(right) for left, right in (line.split(" = ") for line in lines))
    wrong = bitnet("prepare", "arithmetic", "--data.expression", 5, "--out", tmp_path / "b.txt")
    assert wrong.code == 2
    assert 'Did you mean "--data.expressions"?' in wrong.err


@pytest.mark.slow
def test_bad_input_is_one_line(bitnet: Command, tokenizer: Path, tmp_path: Path) -> None:
    data = write_txt(tmp_path / "a.txt", stories(20))
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)))
    (tmp_path / "empty.txt").write_bytes(b"")
    rest = ["--tokenizer", tokenizer, "--out", tmp_path / "out"]
    for words, message in (
        (["prepare"], "name an experiment"),
        (["prepare", "--data", data], "--out"),
        (["prepare", "--data", data, "--dataset", "a/b", *rest], "either files"),
        (["prepare", "--data", tmp_path / "b.txt", *rest], 'Did you mean "a.txt"'),
        (["prepare", "--data", tmp_path / "binary.txt", *rest], "binary data"),
        (["prepare", "--data", tmp_path / "empty.txt", *rest], "no document that can be used"),
        (
            ["prepare", "--data", data, "--tokenizer", tmp_path / "nothing", "--out", tmp_path / "out"],
            "no tokenizer folder",
        ),
        (["prepare", "--data", data, *rest, "--max-tokens", "0"], "--max-tokens is 0"),
        (
            ["prepare", "--data", data, *rest, "--max-documents", "1"],
            "--max-documents is 1, and one document must be held out",
        ),
        (["prepare", "--dataset", tmp_path, "--split", "val", *rest], "--split"),
        (["prepare", "--data", data, *rest, "--processes", "0"], "--processes is 0"),
        (["prepare", "--data", data, *rest, "--held-out-one-in", "1"], "it must be at least 2"),
    ):
        result = bitnet(*words)
        assert result.code == 2, words
        assert message in result.err, result.err
        assert len(result.err.strip().splitlines()) == 1
        assert not (tmp_path / "out").exists(), words


def test_help_shows_both_uses(bitnet: Command) -> None:
    page = bitnet("prepare", "--help")
    assert page.code == 0
    assert "--count" in page.out
    assert "--max-tokens" in page.out
