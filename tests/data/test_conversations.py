"""Conversations from files: both forms, what is learned, and what is left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bitnet.data.conversations import Conversation, chained, encoded, read_conversations
from bitnet.errors import DataError, NotFoundError
from bitnet.text.chat import Turn
from corpora import small_tokenizer

TOKENIZER = small_tokenizer()
ONE = Conversation((Turn("What is a cat?", "The cat sat."),))
TWO = Conversation((Turn("Why?", "Moon."), Turn("And the dog?", "A dog ran.")))


def written(path: Path, *rows: object) -> Path:
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return path


def test_the_template_and_what_is_learned() -> None:
    """Answers with the id that ends them are learned, in every turn; questions and labels are not."""
    (one, two) = encoded([ONE, TWO], TOKENIZER, "bitnut")
    assert TOKENIZER.decode(one.tokens.tolist()) == "human: What is a cat?\nbitnut: The cat sat."
    assert one.tokens[-1] == TOKENIZER.eos_id
    assert TOKENIZER.decode(one.tokens[one.learned].tolist()) == " The cat sat."
    assert (
        TOKENIZER.decode(two.tokens.tolist())
        == "human: Why?\nbitnut: Moon.human: And the dog?\nbitnut: A dog ran."
    )
    assert TOKENIZER.decode(two.tokens[two.learned].tolist()) == " Moon. A dog ran."
    assert (two.tokens[two.learned] == TOKENIZER.eos_id).sum() == 2


def test_a_voice_of_another_name_has_its_own_label() -> None:
    (one,) = encoded([ONE], TOKENIZER, "pirate")
    assert "\npirate:" in TOKENIZER.decode(one.tokens.tolist())


def test_conversations_on_one_topic_are_chained_into_several_turns() -> None:
    """Half of those that begin a conversation go on with the next one on their topic; each is used once."""
    parts = [Conversation((Turn(f"{topic}{n}?", f"{n}."),), topic=topic) for n in range(5) for topic in "ab"]
    made = chained(parts, 0.5)
    assert [[turn.human for turn in one.turns] for one in made[:4]] == [
        ["a0?"],
        ["a1?", "a2?"],
        ["a3?"],
        ["a4?"],
    ]
    assert sorted(turn for one in made for turn in one.turns) == sorted(
        turn for one in parts for turn in one.turns
    )
    assert chained(parts, 0.0) == sorted(parts, key=lambda one: one.topic)
    assert all(len({turn.human[0] for turn in one.turns}) == 1 for one in chained(parts, 1.0))


def test_both_forms_are_read_and_held_out_topics_stand_apart(tmp_path: Path) -> None:
    path = written(
        tmp_path / "answers.jsonl",
        {"prompt": "Why?", "answer": " Woof! ", "topic": "rain"},
        {
            "messages": [
                {"role": r, "content": c}
                for r, c in (("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
            ]
        },
        {"prompt": "And?", "answer": "Arf!", "held_out": True},
    )
    for place in (path, tmp_path):
        found = read_conversations(place)
        assert [one.turns for one in found.train] == [
            (Turn("Why?", "Woof!"),),
            (Turn("a", "b"), Turn("c", "d")),
        ]
        assert [one.turns for one in found.held_out] == [(Turn("And?", "Arf!"),)]
        assert found.train[0].topic == "rain"


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("{broken", "not JSON"),
        ([1, 2], "a list, not an object"),
        ({"prompt": "Why?"}, "without an answer"),
        ({"prompt": "Why?", "answer": "  "}, "without an answer"),
        ({"prompt": " ", "answer": "Woof!"}, "nothing is asked"),
        ({"prompt": 3, "answer": "Woof!"}, "neither prompt and answer nor messages"),
        ({"messages": []}, "without an answer"),
        ({"messages": [{"role": "user", "content": "a"}]}, "without an answer"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "in turn"),
        ({"messages": "a"}, "neither prompt and answer nor messages"),
        ({"prompt": "Why?", "answer": "Woof!", "held_out": "no"}, "held_out is neither"),
    ],
)
def test_a_broken_line_is_counted_and_named(row: object, problem: str, tmp_path: Path) -> None:
    good = {"prompt": "Why?", "answer": "Woof!"}
    found = read_conversations(written(tmp_path / "a.jsonl", *[good] * 19, row))
    assert (len(found.train), found.broken) == (19, 1)
    assert found.first_broken is not None
    assert "line 20" in found.first_broken
    assert problem in found.first_broken
    with pytest.raises(DataError, match=r"2 of 20 lines .* are broken, more than 5%"):
        read_conversations(written(tmp_path / "a.jsonl", *[good] * 18, row, row))


def test_files_that_give_nothing(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="cannot be read"):
        read_conversations(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="has no record"):
        read_conversations(written(tmp_path / "a.jsonl"))
    with pytest.raises(DataError, match="all 1 are held out"):
        read_conversations(
            written(tmp_path / "a.jsonl", {"prompt": "Why?", "answer": "Woof!", "held_out": True})
        )
