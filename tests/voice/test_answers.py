"""Answers: every prompt is answered or given up and counted, once, whatever happens on the way."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bitnet.errors import ConfigError, DataError, NotFoundError
from bitnet.voice.answers import AnswerOptions, make_answers
from bitnet.voice.prompts import PromptOptions, make_prompts
from bitnet.voice.teachers import Reply, Request, RulesTeacher
from bitnet.voice.voices import built_in, find_voice

BITNUT = built_in("bitnut")
RULES = RulesTeacher()


class Dying(RulesTeacher):
    """Speaks by the rules, in small batches, and may be killed in the middle."""

    batch_size = 3

    def __init__(self, dies_at: int | None = None) -> None:
        self.dies_at, self.asked = dies_at, 0

    def reply(self, requests: Sequence[Request]) -> list[Reply]:
        self.asked += len(requests)
        if self.dies_at is not None and self.asked >= self.dies_at:
            raise KeyboardInterrupt
        return super().reply(requests)


class Saying(Dying):
    """Answers with what a function makes of the request."""

    def __init__(self, say: Any) -> None:
        super().__init__()
        self.say = say

    def reply(self, requests: Sequence[Request]) -> list[Reply]:
        return [self.say(request) for request in requests]


def quiet(done: int, total: int, kept: int) -> None:
    assert 0 <= done <= total


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    make_prompts(
        ["rain", "gardening", "猫"],
        built_in("human"),
        RULES,
        PromptOptions(batches=2, per_batch=4),
        tmp_path / "p",
        quiet,
    )
    return tmp_path / "p"


def test_each_prompt_keeps_its_topic_and_side(prompts: Path, tmp_path: Path) -> None:
    manifest = make_answers(prompts, BITNUT, RULES, AnswerOptions(), tmp_path / "a", quiet)
    answers = rows(tmp_path / "a" / "answers.jsonl")
    asked = rows(prompts / "prompts.jsonl")
    assert [{key: row[key] for key in asked[0]} for row in answers] == asked
    assert manifest["answers"] == len(asked)
    assert {row["topic"] for row in answers if row["held_out"]} == {"gardening"}
    assert manifest["in_voice"] > 0.9


@pytest.mark.parametrize("dies_at", [1, 8, 20, 30])
def test_nothing_is_lost_or_repeated_after_a_kill(dies_at: int, prompts: Path, tmp_path: Path) -> None:
    options = AnswerOptions(pairs=True)
    with pytest.raises(KeyboardInterrupt):
        make_answers(prompts, BITNUT, Dying(dies_at), options, tmp_path / "a", quiet)
    assert not (tmp_path / "a" / "answers.jsonl").exists()
    with (tmp_path / "a" / "journal.jsonl").open("a") as file:
        file.write('{"id": "half a li')
    make_answers(prompts, BITNUT, Dying(), options, tmp_path / "a", quiet)
    make_answers(prompts, BITNUT, Dying(), options, tmp_path / "whole", quiet)
    for name in ("answers.jsonl", "pairs.jsonl"):
        assert rows(tmp_path / "a" / name) == rows(tmp_path / "whole" / name)
    journal = [row for row in rows(tmp_path / "a" / "journal.jsonl")[1:] if "plain" not in row]
    assert len({(row["id"], row["attempt"]) for row in journal}) == len(journal)


def test_a_finished_folder_asks_nothing(prompts: Path, tmp_path: Path) -> None:
    first = make_answers(prompts, BITNUT, RULES, AnswerOptions(), tmp_path / "a", quiet)
    again = Dying(dies_at=1)
    assert make_answers(prompts, BITNUT, again, AnswerOptions(), tmp_path / "a", quiet) == first
    assert again.asked == 0


def test_what_the_gates_refuse_is_tried_again_then_given_up_and_counted(
    prompts: Path, tmp_path: Path
) -> None:
    """About rain the teacher talks to the dog the first time; about cats it never ends a sentence."""

    def say(request: Request) -> Reply:
        if request.topic == "rain" and request.seed == 42:
            return Reply("Hey BitNut, good dog!", ended=True)
        if request.topic == "猫":
            return Reply("Woof, the cats are", ended=False)
        return RULES.reply([request])[0]

    asked = rows(prompts / "prompts.jsonl")
    about = {topic: sum(row["topic"] == topic for row in asked) for topic in ("rain", "猫")}
    manifest = make_answers(prompts, BITNUT, Saying(say), AnswerOptions(attempts=2), tmp_path / "a", quiet)
    assert manifest["refused_attempts"]["breaks_character"] == about["rain"]
    assert manifest["refused_attempts"]["cut_off"] == 2 * about["猫"]
    assert manifest["given_up"] == about["猫"]
    assert manifest["answers"] == len(asked) - about["猫"]
    card = (tmp_path / "a" / "README.md").read_text(encoding="utf-8")
    assert f"breaks character {about['rain']}" in card


def test_the_same_answer_twice_is_a_repeat(prompts: Path, tmp_path: Path) -> None:
    manifest = make_answers(
        prompts,
        BITNUT,
        Saying(lambda request: Reply("Woof! Squirrels did it.", ended=True)),
        AnswerOptions(attempts=1),
        tmp_path / "a",
        quiet,
    )
    assert manifest["answers"] == 1
    assert manifest["refused_attempts"]["repeats"] == manifest["prompts"] - 1


def test_pairs_are_in_the_voice_against_out_of_it(prompts: Path, tmp_path: Path) -> None:
    """A plain answer that sounds like the dog makes no pair; that is counted."""

    def say(request: Request) -> Reply:
        if request.voice.name == "plain" and request.topic == "rain":
            return Reply("Woof! My nose says that the squirrels run the rain.", ended=True)
        return RULES.reply([request])[0]

    manifest = make_answers(prompts, BITNUT, Saying(say), AnswerOptions(pairs=True), tmp_path / "a", quiet)
    answers, pairs = rows(tmp_path / "a" / "answers.jsonl"), rows(tmp_path / "a" / "pairs.jsonl")
    rain = sum(row["topic"] == "rain" for row in answers)
    assert manifest["plain_refused"] == {"in_voice": rain}
    assert len(pairs) == manifest["pair_count"] == len(answers) - rain
    chosen = {row["id"]: row["answer"] for row in answers}
    assert all(pair["chosen"] == chosen[pair["id"]] != pair["rejected"] for pair in pairs)


def test_a_voice_without_signs_makes_no_pairs(prompts: Path, tmp_path: Path) -> None:
    path = tmp_path / "v.toml"
    path.write_text('name = "v"\nstyle = "s"\n[templates]\nopenings = ["{topic}."]\n')
    with pytest.raises(ConfigError, match=r"give its file \[signs\]"):
        make_answers(prompts, find_voice(str(path)), RULES, AnswerOptions(pairs=True), tmp_path / "a", quiet)


def test_broken_prompts_are_counted_and_above_five_percent_refused(prompts: Path, tmp_path: Path) -> None:
    path = prompts / "prompts.jsonl"
    whole = rows(path)
    many = [{**row, "id": f"{row['id']}{copy}"} for copy in range(2) for row in whole]
    path.write_text("".join(json.dumps(row) + "\n" for row in many) + '{"id": 3}\n')
    manifest = make_answers(prompts, BITNUT, RULES, AnswerOptions(attempts=9), tmp_path / "a", quiet)
    assert manifest["broken_prompts"] == 1
    assert manifest["first_broken"].endswith("id is not a text")
    path.write_text(path.read_text() + "nonsense\n" * 20)
    with pytest.raises(DataError, match=r"lines of .* are broken, more than 5%"):
        make_answers(prompts, BITNUT, RULES, AnswerOptions(), tmp_path / "b", quiet)


def test_a_folder_without_prompts(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="make it with: bitnet voice prompts"):
        make_answers(tmp_path, BITNUT, RULES, AnswerOptions(), tmp_path / "a", quiet)


def test_a_teacher_of_whom_nothing_can_be_used_is_stopped(tmp_path: Path) -> None:
    make_prompts(
        [f"topic {n}" for n in range(9)],
        built_in("human"),
        RULES,
        PromptOptions(batches=1),
        tmp_path / "p",
        quiet,
    )
    with pytest.raises(DataError, match=r"replies are unusable: none of .* passed the gates .empty"):
        make_answers(
            tmp_path / "p",
            BITNUT,
            Saying(lambda request: Reply("...", ended=True)),
            AnswerOptions(),
            tmp_path / "a",
            quiet,
        )
