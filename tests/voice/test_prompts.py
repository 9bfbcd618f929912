"""Prompts out of free text, without repeats over all topics, and a command that goes on after a kill."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bitnet.errors import ConfigError, DataError
from bitnet.voice.prompts import PromptOptions, make_prompts, read_list
from bitnet.voice.teachers import Reply, Request, RulesTeacher
from bitnet.voice.voices import built_in
from conftest import Command

HUMAN = built_in("human")
SMALL = PromptOptions(batches=2, per_batch=3)


class Scripted:
    """A teacher that says what a test tells it to, and may die on the way."""

    batch_size = 2

    def __init__(self, say: Any, dies_at: int | None = None) -> None:
        self.say, self.dies_at, self.asked = say, dies_at, 0

    def describe(self) -> dict[str, Any]:
        return {"kind": "scripted", "name": "scripted"}

    def reply(self, requests: Sequence[Request]) -> list[Reply]:
        self.asked += len(requests)
        if self.dies_at is not None and self.asked >= self.dies_at:
            raise KeyboardInterrupt
        return [Reply(self.say(request), ended=True) for request in requests]


def quiet(done: int, total: int, kept: int) -> None:
    assert 0 <= done <= total


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "prompts.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    ("text", "entries"),
    [
        (
            "Here are three:\n1. What is rain?\n2) Why?!\n(3) \u201cIs it wet?\u201d\nHope this helps!",
            ["What is rain?", "Why?!", "Is it wet?"],
        ),
        ("- **What is rain?**\n* Why?!\n• Where?", ["What is rain?", "Why?!", "Where?"]),
        ("Sure:\nWhat is rain?\n\nWhy rain?", ["What is rain?", "Why rain?"]),
        ("1. What is rain?\n2. ...\n3. x\n4. " + "a" * 400, ["What is rain?"]),
        ("", []),
    ],
)
def test_lists_as_models_write_them(text: str, entries: list[str]) -> None:
    assert read_list(text) == entries


def test_the_last_entry_of_a_reply_that_was_cut_off_is_left_out() -> None:
    assert read_list("1. What is rain?\n2. Why does it", ended=False) == ["What is rain?"]


def test_repeats_are_dropped_over_all_topics_and_counted(tmp_path: Path) -> None:
    teacher = Scripted(lambda request: "1. How are you?\n2. how are YOU\n3. Tell me about " + request.topic)
    manifest = make_prompts(["rain", "snow"], HUMAN, teacher, SMALL, tmp_path / "p", quiet)
    assert [row["prompt"] for row in lines(tmp_path / "p")] == [
        "How are you?",
        "Tell me about rain",
        "Tell me about snow",
    ]
    assert manifest["prompts"] == 3
    assert manifest["dropped"] == {"unreadable_batches": 0, "repeats": 9}
    assert (tmp_path / "p" / "README.md").read_text(encoding="utf-8").startswith("# Prompts")


@pytest.mark.parametrize("dies_at", [1, 4, 7])
def test_after_a_kill_it_goes_on_and_ends_as_if_nothing_had_happened(dies_at: int, tmp_path: Path) -> None:
    """Also with half a line at the end of the journal."""
    topics = ["rain", "snow", "the moon", "猫"]
    rules = RulesTeacher()

    def say(request: Request) -> str:
        return rules.reply([request])[0].text

    whole = make_prompts(topics, HUMAN, Scripted(say), SMALL, tmp_path / "whole", quiet)
    with pytest.raises(KeyboardInterrupt):
        make_prompts(topics, HUMAN, Scripted(say, dies_at), SMALL, tmp_path / "killed", quiet)
    assert not (tmp_path / "killed" / "prompts.jsonl").exists()
    with (tmp_path / "killed" / "journal.jsonl").open("a") as file:
        file.write('{"topic": "the mo')
    assert make_prompts(topics, HUMAN, Scripted(say), SMALL, tmp_path / "killed", quiet) == whole
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")


def test_a_finished_folder_asks_nothing_and_a_new_topic_only_its_own(tmp_path: Path) -> None:
    rules = RulesTeacher()
    make_prompts(
        ["rain"], HUMAN, Scripted(lambda request: rules.reply([request])[0].text), SMALL, tmp_path, quiet
    )
    again = Scripted(lambda request: rules.reply([request])[0].text)
    make_prompts(["rain", "snow"], HUMAN, again, SMALL, tmp_path, quiet)
    assert again.asked == SMALL.batches
    assert {row["topic"] for row in lines(tmp_path)} == {"rain", "snow"}


def test_other_settings_in_the_same_folder_are_refused(tmp_path: Path) -> None:
    make_prompts(["rain"], HUMAN, RulesTeacher(), SMALL, tmp_path, quiet)
    with pytest.raises(DataError, match=r"begun with other settings .seed 42, now 7."):
        make_prompts(
            ["rain"], HUMAN, RulesTeacher(), PromptOptions(batches=2, per_batch=3, seed=7), tmp_path, quiet
        )


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="holds other files"):
        make_prompts(["rain"], HUMAN, RulesTeacher(), SMALL, tmp_path, quiet)


def test_a_teacher_with_unusable_replies_is_stopped(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"replies are unusable.*'\?\?\?'"):
        make_prompts(
            [f"topic {number}" for number in range(9)],
            HUMAN,
            Scripted(lambda request: "???"),
            SMALL,
            tmp_path,
            quiet,
        )


def test_counts_below_one_are_refused() -> None:
    with pytest.raises(ConfigError, match="--per-batch is 0"):
        PromptOptions(per_batch=0)


FOREIGN = [
    '{"topic": 3}',
    "[1]",
    "null",
    '{"topic": "tea", "batch": 0}',
    '{"topic": "tea", "batch": "0", "prompts": []}',
    '{"topic": "tea", "batch": 0, "prompts": [7]}',
    "{" + '"a":{' * 900,
    '{"batch": ' + "7" * 5000 + "}",
]


@pytest.mark.parametrize("line", FOREIGN)
def test_a_foreign_line_in_the_journal_is_one_line(line: str, bitnet: Command, tmp_path: Path) -> None:
    (tmp_path / "topics.txt").write_text("tea\ncoffee\n")
    words = [
        "voice",
        "prompts",
        "--topics",
        tmp_path / "topics.txt",
        "--teacher",
        "rules",
        "--out",
        tmp_path / "out",
        "--batches",
        1,
    ]
    assert bitnet(*words).code == 0
    with (tmp_path / "out" / "journal.jsonl").open("a") as file:
        file.write(f"{line}\n")
    result = bitnet(*words)
    assert result.code == 2
    assert "journal.jsonl, line 4" in result.err


def test_a_journal_of_a_terabyte_and_one_that_is_a_pipe_are_not_read(tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    with journal.open("wb") as file:
        file.truncate(1 << 40)  # on paper
    with pytest.raises(DataError, match="more than the limit of 268,435,456"):
        make_prompts(["tea"], HUMAN, Scripted(lambda request: ""), SMALL, tmp_path, quiet)
    assert journal.stat().st_size == 1 << 40
    journal.unlink()
    os.mkfifo(journal)
    with pytest.raises(DataError, match="not a regular file"):
        make_prompts(["tea"], HUMAN, Scripted(lambda request: ""), SMALL, tmp_path, quiet)
