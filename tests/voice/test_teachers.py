"""The built-in grammar, over the whole pipeline: what it promises about 100 topics, and about any words as a
topic.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet.errors import ConfigError
from bitnet.voice.answers import AnswerOptions, make_answers
from bitnet.voice.prompts import PromptOptions, make_prompts
from bitnet.voice.score import broken, in_voice
from bitnet.voice.teachers import Reply, Request, RulesTeacher
from bitnet.voice.topics import built_in_topics, mentions
from bitnet.voice.voices import Voice, built_in, find_voice

BITNUT, TEACHER = built_in("bitnut"), RulesTeacher()


def quiet(done: int, total: int, kept: int) -> None:
    assert done <= total


@pytest.mark.slow
def test_one_hundred_topics(tmp_path: Path) -> None:
    """At least 50 answers a topic, none twice, at most 2% with a shared beginning, 80% with the topic, in the
    voice.
    """
    make_prompts(built_in_topics(), built_in("human"), TEACHER, PromptOptions(), tmp_path / "p", quiet)
    make_answers(tmp_path / "p", BITNUT, TEACHER, AnswerOptions(), tmp_path / "a", quiet)
    rows = [
        json.loads(line)
        for line in (tmp_path / "a" / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    answers = [row["answer"] for row in rows]
    topics = Counter(row["topic"] for row in rows)
    assert len(topics) == 100
    assert min(topics.values()) >= 50
    assert len({answer.casefold() for answer in answers}) == len(answers)
    beginnings = Counter(" ".join(answer.split()[:8]) for answer in answers)
    assert sum(count for count in beginnings.values() if count > 1) <= 0.02 * len(answers)
    assert sum(mentions(row["answer"], row["topic"]) for row in rows) >= 0.8 * len(rows)
    assert sum(in_voice(answer, BITNUT) for answer in answers[::7]) >= 0.97 * len(answers[::7])


@given(
    st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=40).filter(str.strip),
    st.integers(0, 2**32),
)
def test_any_topic_is_spoken_of_in_whole_sentences(topic: str, seed: int) -> None:
    """Braces, quotes and any script stand in the answer as they are."""
    (reply,) = TEACHER.reply([Request(BITNUT, topic, "What about it?", seed)])
    assert reply.ended
    assert topic in reply.text
    assert "{" not in reply.text.replace(topic, "")


def test_several_words_and_scripts(tmp_path: Path) -> None:
    for topic in (
        "how to bake a very large cake for a village",
        "猫と犬",
        "Überraschungen",
        "cats & dogs {and} more",
    ):
        (reply,) = TEACHER.reply([Request(BITNUT, topic, "Tell me.", 1)])
        assert mentions(reply.text, topic)
        assert broken(Reply(reply.text, True), BITNUT) is None


def test_the_same_request_gets_the_same_answer_and_another_seed_another() -> None:
    first, again, other = (
        TEACHER.reply([Request(BITNUT, "rain", "Why?", seed)])[0].text for seed in (1, 1, 2)
    )
    assert first == again != other


def test_a_list_is_numbered_and_its_entries_differ() -> None:
    (reply,) = TEACHER.reply([Request(built_in("human"), "rain", "Write 12.", 3, 12)])
    lines = reply.text.splitlines()
    assert [line.split(".")[0] for line in lines] == [str(number) for number in range(1, 13)]
    assert len({line.split(". ", 1)[1] for line in lines}) == 12


def test_it_honours_the_voice(tmp_path: Path) -> None:
    path = tmp_path / "pirate.toml"
    path.write_text(
        'name = "pirate"\nstyle = "Arr."\n[templates]\n'
        'openings = ["Arr, {topic} be {a}."]\n[slots]\na = ["gold"]\n'
    )
    assert TEACHER.reply([Request(find_voice(str(path)), "rum", "?", 1)])[0].text == "Arr, rum be gold."


def test_a_voice_without_templates_is_for_other_teachers() -> None:
    with pytest.raises(ConfigError, match=r"has no \[templates\]"):
        TEACHER.reply([Request(Voice("mute", "Hm.", "0"), "rain", "?", 1)])
