"""A sample with its inner life."""

from __future__ import annotations

import pytest
import torch

from bitnet.generate.snapshot import snapshot, stable_seed
from bitnet.nn.transformer import BitNetTransformer
from bitnet.text.characters import CharacterTokenizer


def test_snapshot_counts_the_generated_part_only(tiny_model: BitNetTransformer) -> None:
    tokenizer = CharacterTokenizer("0123456789+-*/()= \n", 32)
    row = snapshot(tiny_model, tokenizer, "1+1=", mode="typical", seed=7, max_new_tokens=12)
    new = row["generated_ids"][4:]
    assert row["total_tokens"] == len(new) <= 12
    assert row["unique_tokens"] == len(set(new))
    assert row["max_repetition"] == max(new.count(token) for token in new)
    assert len(row["logits_first_10"]) == min(10, len(new))
    assert row["mean_entropy"] == pytest.approx(
        sum(d["entropy"] for d in row["logits_first_10"]) / len(row["logits_first_10"])
    )
    assert 0 < row["mean_entropy"] <= 3.4658
    assert row == snapshot(tiny_model, tokenizer, "1+1=", mode="typical", seed=7, max_new_tokens=12)


def test_stable_seed_is_the_same_in_every_process() -> None:
    assert stable_seed(0, 1000, "greedy") == 3624965142
    assert len({stable_seed(p, s, m) for p in range(5) for s in (1, 2) for m in ("greedy", "typical")}) == 20


@pytest.mark.parametrize("mode", ["greedy", "typical", "stress"])
def test_the_sample_of_a_broken_model_is_recorded_as_such(tiny_model: BitNetTransformer, mode: str) -> None:
    with torch.no_grad():
        tiny_model.final_norm.weight[0] = torch.nan
    row = snapshot(tiny_model, CharacterTokenizer("0123456789+-*/()= \n", 32), "1+1=", mode=mode, seed=1)
    assert row["non_finite"]
    assert row["mean_entropy"] is None
    assert row["generated_text"] == "1+1="
    assert (row["total_tokens"], row["logits_first_10"]) == (0, [])
