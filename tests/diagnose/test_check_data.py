"""What rows are asked: targets, their text, and whether processes share them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bitnet.data import stream
from bitnet.data.stream import Batch
from bitnet.diagnose.check_data import agreement, decoded, ids_and_targets, processes_share, rows_are_pure


class Letters:
    """Ids 1..26 are letters; 0 pads."""

    vocab_size, pad_id = 27, 0

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(96 + token) for token in ids if token)

    def encode(self, text: str) -> list[int]:
        return [ord(letter) - 96 for letter in text]


def batch(ids: list[int], targets: list[int], mask: list[int]) -> Batch:
    return Batch(torch.tensor([ids]), torch.tensor([targets]), torch.tensor([mask], dtype=torch.bool))


def failed(found: Batch, vocabulary: int = 27) -> list[tuple[str, str]]:
    subject: Any = SimpleNamespace(
        task=SimpleNamespace(tokenizer=Letters()), config=SimpleNamespace(vocab_size=vocabulary)
    )
    return [(check.name, check.detail) for check in ids_and_targets(subject, found) if not check.ok]


def test_targets_one_late_or_one_early_are_told_apart() -> None:
    ids = [1, 2, 3, 4, 5, 6]
    assert failed(batch(ids[:-1], ids[1:], [1] * 5)) == []
    ((name, detail),) = failed(batch(ids, ids, [1] * 6))
    assert (name, detail) == ("targets are the next tokens", "the model is asked for the present token")
    ((_, detail),) = failed(batch(ids[:-2], ids[2:], [1] * 4))
    assert detail == "the model is asked for the token after the next"
    assert agreement(batch([1], [2], [1]), 1) == 1.0, "a row of one token has no place where both are known"


def test_padding_that_is_scored_and_ids_without_a_row_are_seen() -> None:
    padded = [3, 0, 0]
    assert failed(batch([2, 3, 0], padded, [1, 0, 0])) == []
    assert [name for name, _ in failed(batch([2, 3, 0], padded, [1, 1, 0]))] == ["loss mask scores text"]
    assert [name for name, _ in failed(batch([2, 3, 4], [3, 4, 5], [0, 0, 0]))] == ["loss mask scores text"]
    assert [name for name, _ in failed(batch([2, 3], [3, 4], [1, 1]), vocabulary=20)] == [
        "ids inside the vocabulary"
    ]


def test_ids_of_another_tokenizer_do_not_come_back_from_their_text() -> None:
    class Other(Letters):
        def encode(self, text: str) -> list[int]:
            return [(ord(letter) - 95) % 27 for letter in text]

    good, other = Letters(), Other()
    rows = [np.array([8, 5, 12, 12, 15]), np.array([1, 0])]
    assert decoded(good, rows) == (1.0, 0.0)  # type: ignore[arg-type]
    share, odd = decoded(other, rows)  # type: ignore[arg-type]
    assert share < 0.5
    assert odd == 0.0
    assert decoded(good, [np.array([0, 0])]) == (0.0, 1.0)  # type: ignore[arg-type]


def test_rows_that_change_when_they_are_read_again_are_seen() -> None:
    reads = iter(range(9))

    def subject(drift: int) -> Any:
        def rows(numbers: Any) -> Batch:
            tokens = torch.from_numpy(numbers)[:, None] + torch.arange(4) + drift * next(reads)
            return Batch(tokens, tokens, tokens > 0)

        return SimpleNamespace(task=SimpleNamespace(source=SimpleNamespace(rows=rows)))

    assert rows_are_pure(subject(0)).ok
    assert not rows_are_pure(subject(1)).ok


def test_processes_that_read_the_same_rows_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert processes_share().ok
    real = stream.row_numbers
    monkeypatch.setattr(
        stream, "row_numbers", lambda step, micro, *, rank, **sizes: real(step, micro, rank=0, **sizes)
    )
    found = processes_share()
    assert not found.ok
    assert found.value == [True, True, False, False]
