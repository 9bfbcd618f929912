"""Tokenizers that somebody else made, by mistake or on purpose: refused in one line before anything is
allocated, or harmless.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitnet.bounds import MOST_ENTRIES
from bitnet.errors import DataError
from bitnet.text.bpe import train_bpe
from bitnet.text.characters import CharacterTokenizer
from bitnet.text.subword import SubwordTokenizer
from bitnet.text.tokenizer import load_tokenizer

Change = Callable[[dict[str, Any]], object]


def replaced(times: int) -> dict[str, Any]:
    """A normalizer that makes every `t` longer, again and again."""
    return {
        "type": "Sequence",
        "normalizers": [{"type": "Replace", "pattern": {"String": "t"}, "content": "t" * 10}] * times,
    }


REFUSED: dict[str, Change] = {
    "an id of 10^12": lambda v: v["model"]["vocab"].update(zz=10**12),
    "a negative id": lambda v: v["model"]["vocab"].update(zz=-1),
    "an id of four billion": lambda v: v["model"]["vocab"].update(zz=2**32 - 1),
    "an added id of two billion": lambda v: v["model"]["vocab"].update(zz=2**31),
    "two tokens with one id": lambda v: v["model"]["vocab"].update({"t": 9, "h": 9}),
    "merges of unknown tokens": lambda v: v["model"].update(merges=[["a", "a"]] * 1000),
    "a panic while reading": lambda v: v.update(
        normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    ),
    "a panic while cutting": lambda v: v.update(pre_tokenizer={"type": "FixedLength", "length": 0}),
    "a panic in the merges": lambda v: v["model"].update(continuing_subword_prefix="##"),
    "an unknown token that is not there": lambda v: v.update(
        model={"type": "WordLevel", "unk_token": "x", "vocab": {"</s>": 0}}
    ),
    "a text that grows a trillion times": lambda v: v.update(normalizer=replaced(12)),
    "an expression that is none": lambda v: v.update(
        normalizer={"type": "Replace", "pattern": {"Regex": "("}, "content": ""}
    ),
}


@pytest.fixture(scope="module")
def trained() -> dict[str, Any]:
    """A small tokenizer.json as values."""
    made = train_bpe(["the cat sat on the mat. " * 50, "a dog and a cat ran home. " * 50], 270)
    values: dict[str, Any] = json.loads(made._content)
    return values


def write(folder: Path, values: object) -> Path:
    (folder / "tokenizer.json").write_text(json.dumps(values))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    return folder


@pytest.mark.parametrize("name", REFUSED)
def test_one_line_and_nothing_of_the_library(
    name: str, trained: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    values = copy.deepcopy(trained)
    REFUSED[name](values)
    with pytest.raises(DataError) as caught:
        load_tokenizer(write(tmp_path, values))
    assert len(str(caught.value).splitlines()) == 1
    assert capfd.readouterr().err == "", "a panic prints a backtrace"


@pytest.mark.parametrize("content", ["[]", "[" * 100_000, '"' + "a" * 1000, "1" * 5000, "null", "{}"])
def test_json_that_is_no_tokenizer(content: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(DataError):
        load_tokenizer(tmp_path)


def test_merges_left_out_at_random_are_not(trained: dict[str, Any], tmp_path: Path) -> None:
    """With dropout a text has other ids each time, so that neither training nor a measurement could be
    repeated.
    """
    values = copy.deepcopy(trained)
    values["model"]["dropout"] = 0.5
    tokenizer = load_tokenizer(write(tmp_path, values))
    assert tokenizer.encode("the cat sat") == SubwordTokenizer(
        json.dumps(trained), {"eos_token": "</s>", "name_or_path": "x"}
    ).encode("the cat sat")


def test_an_empty_sequence_of_steps_is_read(trained: dict[str, Any], tmp_path: Path) -> None:
    values = {**trained, "pre_tokenizer": {"type": "Sequence", "pretokenizers": []}}
    assert load_tokenizer(write(tmp_path, values)).encode("the cat")


def test_characters_have_a_vocabulary_that_can_be_held(tmp_path: Path) -> None:
    (tmp_path / "characters.json").write_text(
        json.dumps({"kind": "characters", "alphabet": "ab", "vocab_size": 10**12})
    )
    with pytest.raises(DataError, match=f"above the {MOST_ENTRIES:,}"):
        CharacterTokenizer.load(tmp_path)
