"""How examples are drawn and laid in rows, and which are held out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bitnet.data.generated import Example, ExampleTable, TableRows, held_out, random_fractions
from bitnet.data.stream import concatenate, row_numbers
from bitnet.errors import ConfigError
from bitnet.text.characters import CharacterTokenizer

TOKENIZER = CharacterTokenizer("ab=\n", 8)  # a 4, b 5, = 6, newline 7


TABLE = ExampleTable.of([Example("a=", "b\n"), Example("bb=", "a\n"), Example("aab=", "bb\n")], TOKENIZER)


def rows(**change: object) -> TableRows:
    settings = {"seed": 3, "seq_len": 8, "layout": "packed", "loss_on": "all", "name": "toy"} | change
    return TableRows(TABLE, **settings)  # type: ignore[arg-type]


def test_one_process_equals_the_union_of_two() -> None:
    source = rows()
    whole = source.rows(row_numbers(7, 0, batch_size=8, accumulation=1, rank=0, world_size=1))
    halves = [
        source.rows(row_numbers(7, 0, batch_size=4, accumulation=1, rank=rank, world_size=2))
        for rank in (0, 1)
    ]
    assert all(
        torch.equal(a, b)
        for a, b in zip(whole.tensors().values(), concatenate(halves).tensors().values(), strict=True)
    )


def test_row_is_a_function_of_seed_and_number_alone() -> None:
    numbers = np.array([11, 4, 900_000_000_000], dtype=np.int64)
    first, second = rows().rows(numbers), rows().rows(numbers[::-1].copy())
    assert torch.equal(first.input_ids, second.input_ids.flip(0))
    assert not torch.equal(first.input_ids, rows(seed=4).rows(numbers).input_ids)


def test_packed_rows_are_examples_end_to_end_and_targets_are_the_next_token() -> None:
    batch = rows().rows(np.arange(50))
    assert batch.input_ids.shape == (50, 8)
    assert torch.equal(batch.input_ids[:, 1:], batch.targets[:, :-1])
    assert bool(batch.loss_mask.all())
    whole = {"a=b\n", "bb=a\n", "aab=bb\n"}
    for row in torch.cat((batch.input_ids, batch.targets[:, -1:]), dim=1).tolist():
        *complete, cut = TOKENIZER.decode(row).split("\n")
        assert {f"{text}\n" for text in complete} <= whole
        assert any(text.startswith(cut) for text in whole)


def test_single_rows_are_padded_and_only_real_tokens_count() -> None:
    batch = rows(layout="single").rows(np.arange(30))
    for row, mask in zip(batch.input_ids.tolist(), batch.loss_mask.tolist(), strict=True):
        text = TOKENIZER.decode(row)
        assert text in {"a=b\n", "bb=a\n", "aab=bb\n"}
        assert sum(mask) == len(text) - 1


def test_loss_on_answers_scores_the_answer_and_its_end_only() -> None:
    batch = rows(layout="single", loss_on="answers").rows(np.arange(30))
    for row, targets, mask in zip(
        batch.input_ids.tolist(), batch.targets.tolist(), batch.loss_mask.tolist(), strict=True
    ):
        scored = TOKENIZER.decode([token for token, counts in zip(targets, mask, strict=True) if counts])
        assert scored == TOKENIZER.decode(row).split("=")[1]


def test_example_longer_than_a_row_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 6"):
        rows(seq_len=5)


def test_weights_decide_how_often_an_example_is_drawn() -> None:
    examples = [Example("a=", "b\n"), Example("b=", "a\n")]
    table = ExampleTable.of(examples, TOKENIZER, weights=[3.0, 1.0])
    source = TableRows(table, seed=0, seq_len=4, layout="single", loss_on="all", name="toy")
    share = float((source.rows(np.arange(4000)).input_ids[:, 0] == 4).float().mean())
    assert share == pytest.approx(0.75, abs=0.03)


def test_random_fractions_are_uniform_and_independent_of_neighbours() -> None:
    values = random_fractions(1, np.arange(2000, dtype=np.int64), 10)
    assert values.min() >= 0
    assert values.max() < 1
    assert values.mean() == pytest.approx(0.5, abs=0.01)
    assert abs(np.corrcoef(values[:, 0], values[:, 1])[0, 1]) < 0.07
    assert len(np.unique(values)) == values.size


def test_held_out_is_stable_and_about_one_in_ten() -> None:
    """The hash must never change: a run continued with another split would be judged on what it trained
    on.
    """
    kept = [number for number in range(40) if held_out(f"{number} + 1")]
    assert kept == [11, 13, 31, 33]
    share = sum(held_out(f"key {number}") for number in range(20_000)) / 20_000
    assert share == pytest.approx(0.1, abs=0.01)


def test_epochs_count_the_examples_that_rows_show() -> None:
    assert rows(layout="single").epochs(6) == 2.0
    packed = rows()
    assert packed.epochs(100) == pytest.approx(100 * 9 / float(TABLE.lengths.mean()) / 3)
