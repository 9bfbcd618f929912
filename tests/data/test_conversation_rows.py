"""Conversations to rows: what is learned, that none sees another, and that every row follows from its
number.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitnet.data.conversation_rows import ConversationRows, packed, single_batches
from bitnet.data.conversations import Conversation, Encoded, encoded
from bitnet.data.generated import Example, ExampleTable, TableRows
from bitnet.errors import ConfigError, DataError
from bitnet.text.characters import CharacterTokenizer
from bitnet.text.chat import Turn
from corpora import small_tokenizer

TOKENIZER = small_tokenizer()
ONE = Conversation((Turn("What is a cat?", "The cat sat."),))
TWO = Conversation((Turn("Why?", "Moon."), Turn("And the dog?", "A dog ran.")))


def made(count: int, seq_len: int = 40, **options: Any) -> ConversationRows:
    """Rows of `count` conversations of 3 to 30 tokens whose ids tell them apart."""
    generator = np.random.default_rng(5)
    lengths = generator.integers(3, 30, count)
    parts = [Encoded(np.full(n, 10 + i), np.arange(n) >= n // 2) for i, n in enumerate(lengths)]
    return ConversationRows(parts, seq_len=seq_len, seed=1, pad_id=0, name="made", **options)


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
