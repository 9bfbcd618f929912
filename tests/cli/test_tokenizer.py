"""`bitnet tokenizer train` and `inspect`."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitnet.text.tokenizer import load_tokenizer
from conftest import Command
from corpora import stories, write_txt


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_txt(tmp_path / "stories.txt", stories(300))


def test_trained_inspected_and_trained_again(bitnet: Command, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "tokenizer"
    trained = bitnet("tokenizer", "train", "--data", data, "--vocab-size", 320, "--out", out, "--json")
    assert trained.code == 0, trained.err
    assert trained.json["vocab_size"] == 320
    assert "documents" in trained.err
    assert load_tokenizer(out).describe()["tokenizer_sha256"] == trained.json["tokenizer_sha256"]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    again = bitnet("tokenizer", "train", "--data", data, "--vocab-size", 320, "--out", out)
    assert again.code == 0, "the same tokenizer is there already"
    other = bitnet("tokenizer", "train", "--data", data, "--vocab-size", 310, "--out", out)
    assert other.code == 2
    assert "holds another tokenizer" in other.err
    seen = bitnet("tokenizer", "inspect", out, "--data", data, "--json").json
    assert seen["round_trip"] is True
    assert seen["documents"] == 300
    assert 1.5 < seen["bytes_per_token"] < 8
    assert seen["bytes_per_token"] == pytest.approx(
        sum(len(text.encode()) for text in stories(300)) / seen["tokens"]
    )
    assert len(seen["longest_tokens"][0]) >= len(seen["longest_tokens"][-1])


def test_inspect_shows_a_text_piece_by_piece(bitnet: Command, data: Path, tmp_path: Path) -> None:
    bitnet("tokenizer", "train", "--data", data, "--vocab-size", 300, "--out", tmp_path / "t")
    page = bitnet("tokenizer", "inspect", tmp_path / "t", "--text", "the cat 7")
    assert page.code == 0, page.err
    assert "every text came back" in page.out
    assert ":'7'" in page.out
    assert "bytes per token" not in bitnet("tokenizer", "inspect", tmp_path / "t").out


def test_characters_lose_what_is_not_in_the_alphabet_and_inspect_says_so(
    bitnet: Command, data: Path, tmp_path: Path
) -> None:
    made = bitnet(
        "tokenizer",
        "train",
        "--data",
        data,
        "--kind",
        "characters",
        "--vocab-size",
        46,
        "--out",
        tmp_path / "t",
    )
    assert made.code == 0, made.err
    assert "every text came back" in bitnet("tokenizer", "inspect", tmp_path / "t", "--data", data).out
    assert (
        "1 of 1 texts did NOT come back"
        in bitnet("tokenizer", "inspect", tmp_path / "t", "--text", "日本").out
    )


def test_bad_input_is_one_line(bitnet: Command, data: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("dear")
    empty, binary, tokenizer = tmp_path / "empty.txt", tmp_path / "binary.txt", tmp_path / "tokenizer"
    empty.write_bytes(b"")
    binary.write_bytes(bytes(range(256)))
    assert bitnet("tokenizer", "train", "--data", data, "--vocab-size", 300, "--out", tokenizer).code == 0
    train = ["tokenizer", "train", "--data", data, "--vocab-size"]
    for words, message in (
        (["tokenizer"], "say what to do"),
        (["tokenizer", "trian"], 'Did you mean "train"?'),
        (["tokenizer", "train", "--vocab-size", 300, "--out", tmp_path / "x"], "--data"),
        ([*train, 100, "--out", tmp_path / "x"], "at least 260"),
        ([*train, 30_000, "--out", tmp_path / "x"], "the data supports a vocabulary of"),
        ([*train, 47, "--kind", "characters", "--out", tmp_path / "x"], "a vocabulary of 46 entries only"),
        (
            ["tokenizer", "train", "--data", empty, "--vocab-size", 300, "--out", tmp_path / "x"],
            "empty.txt has no document that can be used (1 empty)",
        ),
        (
            ["tokenizer", "train", "--data", binary, "--vocab-size", 260, "--out", tmp_path / "x"],
            "binary.txt, record 1: binary data",
        ),
        (["tokenizer", "inspect", tokenizer, "--data", binary], "no document that can be used (1 broken"),
        ([*train, 300, "--out", tmp_path / "mine"], "holds no tokenizer"),
        ([*train, 300, "--out", tmp_path / "x", "--max-documents", 0], "--max-documents is 0"),
        ([*train, 300, "--out", tmp_path / "x", "--colum", "a"], 'Did you mean "--column"?'),
        (["tokenizer", "inspect", tmp_path / "absent"], "no tokenizer folder"),
        (["tokenizer", "inspect", tmp_path / "mine"], "there is no tokenizer in"),
        (["tokenizer", "inspect", tmp_path / "mine", "--text", "a", "--data", data], "not both"),
    ):
        result = bitnet(*words)
        assert result.code == 2, words
        assert message in result.err, result.err
        assert not (tmp_path / "x").exists()
    assert (tmp_path / "mine" / "letter").read_text() == "dear"


def test_what_is_left_out_is_said(bitnet: Command, data: Path, tmp_path: Path) -> None:
    binary = tmp_path / "binary.txt"
    binary.write_bytes(bytes(range(256)))
    words = ["tokenizer", "train", "--data", data, binary, "--vocab-size", 300, "--out", tmp_path / "t"]
    seen = ["tokenizer", "inspect", tmp_path / "t", "--data", data, binary]
    for result in (bitnet(*words), bitnet(*words, "--max-documents", 300), bitnet(*seen)):
        assert result.code == 0, result.err
        assert f"left out: 1 broken (first: {binary}, record 1: binary data, not text)" in result.err


def test_help(bitnet: Command) -> None:
    assert "inspect" in bitnet("tokenizer", "--help").out
    for action in ("train", "inspect"):
        with pytest.raises(SystemExit) as end:
            bitnet("tokenizer", action, "--help")
        assert end.value.code == 0
