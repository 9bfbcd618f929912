"""`bitnet voice prompts` and `bitnet voice answers` from the command line, with the grammar as the
teacher.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conftest import Command


@pytest.fixture
def topics(tmp_path: Path) -> Path:
    path = tmp_path / "topics.txt"
    path.write_text("rain\ngardening\nhow to bake a cake\n猫\n", encoding="utf-8")
    return path


def test_from_topics_to_pairs(bitnet: Command, topics: Path, tmp_path: Path) -> None:
    made = bitnet(
        "voice", "prompts", "--topics", topics, "--teacher", "rules", "--out", tmp_path / "p", "--json"
    )
    assert made.code == 0, made.err
    assert made.json["topics"] == 4
    assert made.json["topics_held_out"] == 1
    assert made.json["fewest_of_a_topic"] >= 50
    done = bitnet(
        "voice",
        "answers",
        "--prompts",
        tmp_path / "p",
        "--teacher",
        "rules",
        "--pairs",
        "--out",
        tmp_path / "a",
        "--json",
    )
    assert done.code == 0, done.err
    assert done.json["answers"] == made.json["prompts"] - done.json["given_up"]
    assert done.json["in_voice"] > 0.95
    assert "attempts refused" in done.err
    assert {path.name for path in (tmp_path / "a").iterdir()} == {
        "journal.jsonl",
        "answers.jsonl",
        "pairs.jsonl",
        "voice.toml",
        "manifest.json",
        "README.md",
    }
    assert json.loads((tmp_path / "a" / "manifest.json").read_text())["answers"] == done.json["answers"]


def test_a_voice_of_ones_own(bitnet: Command, topics: Path, tmp_path: Path) -> None:
    voice = tmp_path / "pirate.toml"
    voice.write_text(
        'name = "pirate"\nstyle = "You are a pirate."\n[templates]\n'
        'openings = ["Arr, {topic} be {kind}.", "{topic}, arr!"]\n'
        'middles = ["Yo ho!", "Hoist the {kind}!"]\n[slots]\n'
        'kind = ["gold", "rum", "bilge"]\n[signs]\narr = 1\n'
    )
    bitnet(
        "voice",
        "prompts",
        "--topics",
        topics,
        "--teacher",
        "rules",
        "--out",
        tmp_path / "p",
        "--batches",
        1,
        "--per-batch",
        3,
    )
    done = bitnet(
        "voice",
        "answers",
        "--prompts",
        tmp_path / "p",
        "--voice",
        voice,
        "--teacher",
        "rules",
        "--out",
        tmp_path / "a",
        "--json",
    )
    assert done.code == 0, done.err
    assert done.json["voice"] == "pirate"
    assert done.json["in_voice"] == 1.0
    lines = (tmp_path / "a" / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    assert all("arr" in json.loads(line)["answer"].lower() for line in lines)


def test_each_mistake_is_one_line(bitnet: Command, topics: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    prompts = ["voice", "prompts", "--teacher", "rules", "--out", tmp_path / "p"]
    answers = ["voice", "answers", "--teacher", "rules", "--out", tmp_path / "a"]
    for words, message in (
        (["voice"], "say what to do"),
        (["voice", "prompt"], 'Did you mean "prompts"?'),
        ([*prompts, "--topics", empty], "has no topic"),
        ([*prompts, "--topics", tmp_path / "none"], "cannot be read"),
        ([*prompts, "--topics", topics, "--batches", 0], "--batches is 0"),
        ([*answers, "--prompts", tmp_path / "none"], "make it with: bitnet voice prompts"),
        ([*answers, "--prompts", tmp_path, "--voice", "bitnutt"], 'Did you mean "bitnut"?'),
        ([*prompts[:2], "--teacher", "http://localhost:1", "--out", tmp_path / "p"], "add --model NAME"),
    ):
        done = bitnet(*words)
        assert done.code == 2, words
        assert message in done.err
        assert done.err.count("\n") == 1
    assert not (tmp_path / "p").exists()


def test_help_shows_both(bitnet: Command) -> None:
    done = bitnet("voice", "--help")
    assert done.code == 0
    assert "voice answers --prompts DIR" in done.out
