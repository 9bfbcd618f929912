"""Topics: any words, one a line; and a split that neither order nor additions move."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet.errors import DataError, NotFoundError
from bitnet.voice.topics import built_in_topics, is_held_out, mentions, read_topics


def test_one_hundred_topics_come_along_and_twenty_are_held_out() -> None:
    topics = built_in_topics()
    assert len(topics) == 100
    assert sum(map(is_held_out, topics)) == 20
    assert is_held_out("gardening")
    assert not is_held_out("the moon")


def test_any_words_in_any_script_each_once(tmp_path: Path) -> None:
    path = tmp_path / "topics.txt"
    path.write_text(
        '\ufeffthe moon\n\n  The  Moon \nÄpfel & Öl\n猫\nhow to say "no" {politely}\n', encoding="utf-8"
    )
    assert read_topics(path) == ["the moon", "Äpfel & Öl", "猫", 'how to say "no" {politely}']


@pytest.mark.parametrize("content", [b"", b"\n \n\t\n"])
def test_an_empty_file_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "topics.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match="has no topic; write one on each line"):
        read_topics(path)


def test_a_file_of_a_terabyte_is_no_list_of_topics(tmp_path: Path) -> None:
    path = tmp_path / "topics.txt"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # on paper
    with pytest.raises(DataError, match="more than the 16,777,216 bytes"):
        read_topics(path)


def test_files_that_hold_no_topics(tmp_path: Path) -> None:
    path = tmp_path / "topics.txt"
    for content, message in (
        (b"\xff\xfe", "UTF-8"),
        (b"x" * 500, "one short topic a line"),
        (b"a\x00b", "control characters"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            read_topics(path)
    with pytest.raises(NotFoundError, match="cannot be read"):
        read_topics(tmp_path / "none.txt")


@given(st.text(min_size=1))
def test_the_side_of_a_topic_depends_on_its_words_alone(topic: str) -> None:
    assert is_held_out(topic) == is_held_out(f"  {topic}\n ")
    assert is_held_out("The  Moon") == is_held_out("the moon")


def test_a_mention_is_the_words_as_they_stand_in_any_case() -> None:
    assert mentions("Woof! The  MOON is an acorn.", "the moon")
    assert mentions("STRASSE", "straße")
    assert not mentions("the man", "the moon")
