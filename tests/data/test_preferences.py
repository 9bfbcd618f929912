"""Pairs to rows: whole pairs, each once an epoch, and every row follows from its number."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bitnet.data.preferences import Pair, PairRows, encoded_pairs, read_pairs
from bitnet.data.stream import Batch
from bitnet.errors import DataError, NotFoundError
from corpora import small_tokenizer

TOKENIZER = small_tokenizer()
PAIRS = [
    Pair(f"Say {word}.", f"The {word} sat.", f"A {word} is there, and the moon.")
    for word in ("cat", "dog", "sun", "moon", "tree")
]


def counted(batch: Batch) -> Tensor:
    """A stand-in for log-probabilities that tells rows apart."""
    return -(batch.input_ids * batch.loss_mask).sum(dim=1).float()


def made(seq_len: int = 100) -> PairRows:
    pairs = encoded_pairs(PAIRS, TOKENIZER, "bitnut")
    return PairRows(pairs, seq_len=seq_len, seed=1, pad_id=TOKENIZER.pad_id, name="made", reference=counted)


def test_an_epoch_has_every_pair_once_chosen_first() -> None:
    batch = made().rows(np.arange(10))
    answers = [
        TOKENIZER.decode(row[mask].tolist()).strip()
        for row, mask in zip(batch.targets, batch.loss_mask, strict=True)
    ]
    assert sorted(zip(answers[0::2], answers[1::2], strict=True)) == sorted(
        (pair.chosen, pair.rejected) for pair in PAIRS
    )
    questions = [TOKENIZER.decode(row.tolist()).split("\n")[0] for row in batch.input_ids]
    assert questions[0::2] == questions[1::2]
    assert made().epochs(20) == 2.0
    assert batch.reference is not None
    assert torch.equal(batch.reference, counted(batch))


def test_rows_follow_from_their_numbers() -> None:
    whole, again = made().rows(np.arange(10, 30)), made().rows(np.arange(10, 30))
    assert all(
        torch.equal(a, b) for a, b in zip(whole.tensors().values(), again.tensors().values(), strict=True)
    )
    part = made().rows(np.arange(14, 18))
    assert torch.equal(whole.input_ids[4:8], part.input_ids)
    assert not torch.equal(made().rows(np.arange(10)).input_ids, made().rows(np.arange(10, 20)).input_ids)


def test_all_in_order() -> None:
    batches = made().in_order(4)
    assert [len(batch.input_ids) for batch in batches] == [4, 4, 2]


def test_pairs_that_do_not_fit_are_counted() -> None:
    lengths = sorted(
        max(len(side.tokens) for side in pair) for pair in encoded_pairs(PAIRS, TOKENIZER, "bitnut")
    )
    rows = made(seq_len=lengths[0] - 1)
    assert rows.too_long == sum(length > lengths[0] for length in lengths)
    assert rows.fingerprint()["pairs_too_long"] == rows.too_long
    with pytest.raises(DataError, match="no pair of made fits a row of 3 tokens"):
        made(seq_len=3)


def test_what_a_file_holds(tmp_path: Path) -> None:
    rows = [{**pair._asdict(), "held_out": number == 0} for number, pair in enumerate(PAIRS)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_pairs(tmp_path)
    assert (found.train, found.held_out) == (PAIRS[1:], PAIRS[:1])
    with pytest.raises(NotFoundError, match="bitnet voice answers --pairs"):
        read_pairs(tmp_path / "none")
    for broken, message in (
        ({"chosen": "a", "rejected": "b"}, "prompt is not a text"),
        ({"prompt": "a", "chosen": "b", "rejected": " b "}, "chosen and rejected are the same"),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c", "held_out": 1},
            "held_out is neither true nor false",
        ),
    ):
        (tmp_path / "bad.jsonl").write_text(json.dumps(broken) + "\n")
        with pytest.raises(DataError, match=message):
            read_pairs(tmp_path / "bad.jsonl")
    (tmp_path / "kept.jsonl").write_text(json.dumps({**PAIRS[0]._asdict(), "held_out": True}) + "\n")
    with pytest.raises(DataError, match="no pair to train on"):
        read_pairs(tmp_path / "kept.jsonl")
