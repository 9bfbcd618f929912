"""Characters: exact for tasks, counted for stories."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitnet.errors import DataError
from bitnet.text.characters import CharacterTokenizer
from bitnet.text.tokenizer import UNK, load_tokenizer


def test_counted_alphabet_keeps_the_most_frequent_characters(tmp_path: Path) -> None:
    tokenizer = CharacterTokenizer.count(["aaa bb", "aé"], 4 + 3)
    assert tokenizer.alphabet == " ab"  # " " and é are equally frequent; the smaller code point stays
    assert tokenizer.encode("abé") == [5, 6, UNK]
    assert tokenizer.decode(tokenizer.encode("abé")) == "ab"
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.describe() == tokenizer.describe()
    assert again.encode("é") == [UNK]


def test_a_tasks_alphabet_is_exact_and_its_hash_has_not_changed() -> None:
    """The hash stands in the meta/config.json of existing runs: another value would refuse to resume them."""
    tokenizer = CharacterTokenizer("ab=\n", 8)
    assert (
        tokenizer.describe()["tokenizer_sha256"]
        == "895d3facdef634b917b394aafa375efcd6c2ef917b4d32297e2bf297cc9803b0"
    )
    with pytest.raises(DataError, match="not in this model's alphabet"):
        tokenizer.encode("c")


def test_bytes_per_id_are_those_of_utf_8() -> None:
    tokenizer = CharacterTokenizer("aé日", 9)
    assert tokenizer.byte_lengths().tolist() == [0, 0, 0, 0, 1, 2, 3, 0, 0]
    assert tokenizer.encode_array("é日a").tolist() == tokenizer.encode("é日a")


def test_nothing_to_count_is_an_error() -> None:
    with pytest.raises(DataError, match="no alphabet"):
        CharacterTokenizer.count([], 64)
