"""The figures of `bitnet tokenizer inspect`, by worked example."""

from __future__ import annotations

from bitnet.text.characters import CharacterTokenizer
from bitnet.text.inspect import compression, longest_tokens


def test_bytes_per_token_and_changed_texts() -> None:
    tokenizer = CharacterTokenizer("aé", 8, unknown=True)  # é has two bytes
    figures = compression(tokenizer, ["aé", "aé", "ab"])
    assert figures == {
        "documents": 3,
        "bytes": 8,
        "tokens": 6,
        "bytes_per_token": 8 / 6,
        "round_trip": False,
        "changed": 1,
    }
    assert compression(tokenizer, ["aé"])["round_trip"] is True
    assert compression(tokenizer, []) == compression(tokenizer, [""]) == {}


def test_the_longest_tokens_come_first() -> None:
    assert longest_tokens(CharacterTokenizer("aé€", 8), 2) == ["€", "é"]
