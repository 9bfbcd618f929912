"""The memory of words: it ends, what is met often stays in it, and what it forgot is encoded again."""

from __future__ import annotations

import pytest

from bitnet.text import word_cache as words
from bitnet.text.word_cache import WordEncoder


class Library:
    """One id per character, and a record of what was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, texts: list[str]) -> list[list[int]]:
        self.asked += texts
        return [[ord(character) for character in text] for text in texts]


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    monkeypatch.setattr(words, "GENERATION", 10)
    return Library()


def named(number: int) -> str:
    """A word of letters that no other number has."""
    return " w" + "".join(chr(ord("a") + int(digit)) for digit in str(number))


def test_the_memory_ends_and_frequent_words_stay_in_it(library: Library) -> None:
    encode = WordEncoder(library)
    texts = [f" often{named(number)} end." for number in range(200)]
    for text in texts:
        assert encode(text).tolist() == [ord(character) for character in text]
        assert len(encode._newer) <= 10
        assert len(encode._older) <= 10
    assert library.asked.count(" often") == 1
    assert len(library.asked) == len(set(library.asked)) == 200 + 3  # " often", " end", "."


def test_what_was_forgotten_is_encoded_again(library: Library) -> None:
    encode = WordEncoder(library)
    for number in [0, *range(50), 0]:
        assert encode(named(number) + " end.").tolist() == [
            ord(character) for character in named(number) + " end."
        ]
    assert library.asked.count(named(0)) == 2


def test_a_text_of_many_words_does_not_fill_it_beyond_its_end(library: Library) -> None:
    encode = WordEncoder(library)
    encode(" often end.")
    text = "".join(map(named, range(1000))) + " often end."
    for _ in range(3):
        assert encode(text).tolist() == [ord(character) for character in text]
        assert len(encode._newer) <= 10
        assert len(encode._older) <= 10


def test_a_long_part_is_not_remembered(library: Library) -> None:
    encode, long = WordEncoder(library), "x" * (words.LONGEST_CACHED + 1)
    for _ in range(2):
        assert encode(long).tolist() == [ord("x")] * len(long)
    assert library.asked == [long, long]
