"""Conversations to rows: what is learned, that none sees another, and that every row follows from its
number.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitnet.data.conversations import (
    Conversation,
    ConversationRows,
    Encoded,
    chained,
    encoded,
    packed,
    read_conversations,
    single_batches,
)
from bitnet.data.generated import Example, ExampleTable, TableRows
from bitnet.errors import ConfigError, DataError, NotFoundError
from bitnet.text.characters import CharacterTokenizer
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


def made(count: int, seq_len: int = 40, **options: Any) -> ConversationRows:
    """Rows of `count` conversations of 3 to 30 tokens whose ids tell them apart."""
    generator = np.random.default_rng(5)
    lengths = generator.integers(3, 30, count)
    parts = [Encoded(np.full(n, 10 + i), np.arange(n) >= n // 2) for i, n in enumerate(lengths)]
    return ConversationRows(parts, seq_len=seq_len, seed=1, pad_id=0, name="made", **options)


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


def test_targets_that_count_are_the_answers() -> None:
    """The end of one conversation never has to guess the beginning of the next."""
    rows = ConversationRows(
        encoded([ONE, TWO] * 4, TOKENIZER, "bitnut"), seq_len=120, seed=1, pad_id=TOKENIZER.pad_id, name="x"
    )
    batch = rows.rows(np.arange(len(rows.packed)))
    said = TOKENIZER.decode(batch.targets[batch.loss_mask].tolist())
    assert sorted(said.replace(" The cat sat.", "1").replace(" Moon. A dog ran.", "2")) == sorted("1212" * 2)
    assert batch.segments is not None
    assert batch.segments.shape == batch.input_ids.shape


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


def test_segments_number_the_conversations_of_a_row() -> None:
    batch = made(30).rows(np.arange(20))
    assert batch.segments is not None
    for ids, segments in zip(batch.input_ids.tolist(), batch.segments.tolist(), strict=True):
        runs = [ids[0]] + [b for a, b in itertools.pairwise(ids) if a != b]
        assert len(set(zip(ids, segments, strict=True))) == len(runs) == len(set(segments))
        assert segments == sorted(segments)


def test_an_epoch_shows_every_conversation_once() -> None:
    rows = made(50)
    count = len(rows.packed)
    for epoch in range(3):
        batch = rows.rows(np.arange(epoch * count, (epoch + 1) * count))
        seen = [number for ids in batch.input_ids.tolist() for number in set(ids) - {0}]
        assert sorted(seen) == list(range(10, 60))
    assert rows.epochs(2 * count) == 2.0
    first, second = (rows.rows(np.arange(e * count, (e + 1) * count)).input_ids for e in (0, 1))
    assert not torch.equal(first, second)


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=6))
def test_a_row_follows_from_its_number_alone(numbers: list[int]) -> None:
    rows = made(20, other=letters(), other_share=0.3)
    together = rows.rows(np.array(numbers))
    for place, number in enumerate(numbers):
        alone = rows.rows(np.array([number]))
        for name, tensor in alone.tensors().items():
            assert torch.equal(together.tensors()[name][place], tensor[0]), name


def letters() -> TableRows:
    """Other text: rows of ids below 10, all of them learned."""
    tokenizer = CharacterTokenizer("ab", 6)
    table = ExampleTable.of([Example("", "ab" * 20)], tokenizer)
    return TableRows(table, seed=1, seq_len=40, layout="packed", loss_on="all", name="letters")


def test_a_share_of_other_text_is_mixed_in_evenly() -> None:
    rows = made(20, other=letters(), other_share=0.25)
    batch = rows.rows(np.arange(400))
    other = (batch.input_ids < 10).all(dim=1) & batch.loss_mask.all(dim=1)
    assert int(other.sum()) == 100
    assert other[:40].sum() == other[200:240].sum() == 10
    assert batch.segments is not None
    assert int(batch.segments[other].sum()) == 0
    assert rows.fingerprint()["other"]["dataset_name"] == "letters"


@given(st.lists(st.integers(1, 20), min_size=1, max_size=60))
def test_packing_fits_loses_nothing_and_wastes_little(lengths: list[int]) -> None:
    rows = packed(lengths, 20)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= 20 for row in rows)
    assert (
        len(rows) <= 1 + sum(lengths) * 11 / 9 / 20 + 2
    )  # best fit decreasing: at most 11/9 of the optimum and a little


def test_conversations_longer_than_a_row_are_counted() -> None:
    long = Encoded(np.full(60, 5), np.ones(60, dtype=bool))
    short = Encoded(np.full(20, 6), np.ones(20, dtype=bool))
    rows = ConversationRows([long, short], seq_len=40, seed=1, pad_id=0, name="x")
    assert rows.fingerprint()["conversations_too_long"] == 1
    with pytest.raises(DataError, match="no conversation of x fits a row of 40 tokens; raise --seq-len"):
        ConversationRows([long], seq_len=40, seed=1, pad_id=0, name="x")
    with pytest.raises(ConfigError, match="share of other text is 1"):
        made(3, other_share=1.0)


def test_the_held_out_loss_is_measured_on_one_conversation_a_row() -> None:
    batches = single_batches(
        encoded([ONE, TWO, ONE], TOKENIZER, "bitnut"), seq_len=60, batch_size=2, pad_id=TOKENIZER.pad_id
    )
    assert [len(batch.input_ids) for batch in batches] == [2, 1]
    assert all(batch.segments is None for batch in batches)


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
