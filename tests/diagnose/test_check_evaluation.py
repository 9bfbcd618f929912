"""Whether held-out rows are held out, and what is summed: by worked example."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bitnet.data.stream import Batch
from bitnet.diagnose.check_evaluation import STRETCH, apart, frozen_set, leaked_text, same_tokens, summed


class Identity:
    """A tokenizer whose text is a character for each id."""

    eos_id = 1

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))


def subject(**task: Any) -> Any:
    return SimpleNamespace(
        task=SimpleNamespace(tokenizer=Identity(), **task), config=SimpleNamespace(vocab_size=200)
    )


def test_a_row_of_training_among_the_held_out_ones_is_seen() -> None:
    random = np.random.default_rng(5)
    rows = [random.integers(4, 200, 2 * STRETCH) for _ in range(4)]
    assert leaked_text(rows[:2], rows[2:]) == 0.0
    assert leaked_text(rows[:2], rows[1:]) == 0.5
    found = apart(subject(end_mark=None), rows[:2], rows[1:])
    assert (found.ok, found.value) == (False, 0.5)


def test_an_example_of_training_among_the_held_out_ones_is_seen() -> None:
    """10, a line break, ends an example."""
    kept, trained = [np.array([50, 51, 10, 52, 53, 10])], [np.array([60, 61, 10, 52, 53, 10])]
    found = apart(subject(end_mark="\n"), kept, trained)
    assert (found.ok, found.value) == (False, 0.5)
    assert apart(subject(end_mark="\n"), kept, [np.array([60, 61, 10])]).ok


def test_a_usual_token_that_is_never_held_out_is_named() -> None:
    trained = [np.array([97, 98] * 50)]
    assert same_tokens(subject(), trained, trained).ok
    found = same_tokens(subject(), [np.array([97] * 100)], trained)
    assert (found.ok, found.value) == (False, 1)
    assert "'b'" in found.detail


def test_a_held_out_set_that_changes_is_not_frozen() -> None:
    tokens = torch.arange(6)[None]
    batch = Batch(tokens[:, :-1], tokens[:, 1:], torch.ones(1, 5, dtype=torch.bool))
    other = batch._replace(loss_mask=torch.zeros(1, 5, dtype=torch.bool))
    assert all(check.ok for check in frozen_set(subject(frozen_evaluation=lambda: [batch]), [batch]))
    frozen, _ = frozen_set(subject(frozen_evaluation=lambda: [other]), [batch])
    assert not frozen.ok
    _, shifted = frozen_set(subject(frozen_evaluation=list), [batch._replace(targets=batch.input_ids)])
    assert not shifted.ok


def test_only_scored_targets_are_summed() -> None:
    """Even logits over four ids cost ln 4 each; three targets of two batches are scored."""
    masks = [[[True, False]], [[True, True]]]
    batches = [Batch(torch.zeros(1, 2).long(), torch.ones(1, 2).long(), torch.tensor(mask)) for mask in masks]
    nats, tokens = summed([torch.zeros(1, 2, 4)] * 2, batches)
    assert (nats, tokens) == (pytest.approx(3 * math.log(4)), 3)
