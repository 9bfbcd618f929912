"""Decoding modes obey their definitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from bitnet.errors import ConfigError, DataError, NotFiniteError
from bitnet.generate.decode import continue_prompts, generate, stream
from bitnet.generate.sampling import Sampling, choose, probabilities
from bitnet.nn.transformer import BitNetTransformer

LOGITS = torch.tensor([[0.5, 0.25, 0.15, 0.1]]).log()


def probs(**settings: float) -> list[float]:
    return [round(value, 4) for value in probabilities(LOGITS, Sampling(**settings))[0].tolist()]  # type: ignore[arg-type]


def test_greedy_is_argmax() -> None:
    assert probs() == [1.0, 0.0, 0.0, 0.0]
    assert choose(LOGITS, Sampling(), torch.Generator()).tolist() == [0]


def test_temperature_sharpens_below_one_and_flattens_above() -> None:
    assert probs(temperature=1.0) == [0.5, 0.25, 0.15, 0.1]
    assert probs(temperature=0.5)[0] == pytest.approx(0.25 / (0.25 + 0.0625 + 0.0225 + 0.01), abs=1e-4)
    assert probs(temperature=2.0)[0] < 0.5


def test_top_k_keeps_the_k_most_likely() -> None:
    assert probs(temperature=1.0, top_k=2) == [0.6667, 0.3333, 0.0, 0.0]
    assert probs(temperature=1.0, top_k=99) == [0.5, 0.25, 0.15, 0.1]


def test_top_p_keeps_the_smallest_head_that_holds_p() -> None:
    assert probs(temperature=1.0, top_p=0.5) == [1.0, 0.0, 0.0, 0.0]
    assert probs(temperature=1.0, top_p=0.6) == [0.6667, 0.3333, 0.0, 0.0]
    assert probs(temperature=1.0, top_p=1.0) == [0.5, 0.25, 0.15, 0.1]
    assert probs(temperature=1.0, top_p=1e-9) == [1.0, 0.0, 0.0, 0.0]


def test_draws_follow_the_distribution_and_the_seed() -> None:
    many = LOGITS.expand(20_000, -1)
    sampling = Sampling(temperature=1.0, seed=5)
    first = choose(many, sampling, sampling.generator(torch.device("cpu")))
    again = choose(many, sampling, sampling.generator(torch.device("cpu")))
    assert torch.equal(first, again)
    assert (first == 0).float().mean() == pytest.approx(0.5, abs=0.02)
    assert (first == 3).float().mean() == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"top_k": 0},
        {"seed": -1},
    ],
)
def test_settings_out_of_range_are_named(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        Sampling(**bad)  # type: ignore[arg-type]


def test_sampling_never_touches_the_global_generator(tiny_model: BitNetTransformer) -> None:
    before = torch.get_rng_state()
    generate(tiny_model, torch.tensor([[5, 6]]), max_new_tokens=6, sampling=Sampling(temperature=1.0, seed=1))
    assert torch.equal(before, torch.get_rng_state())


def test_greedy_decoding_equals_argmax_of_full_passes(tiny_model: BitNetTransformer) -> None:
    ids = torch.tensor([[5, 6, 7], [9, 4, 8]])
    out = generate(tiny_model, ids, max_new_tokens=8)
    for length in range(3, 11):
        assert torch.equal(out[:, length], tiny_model(out[:, :length])[:, -1].argmax(-1))


def test_decoding_fills_the_context_and_stops_there(tiny_model: BitNetTransformer) -> None:
    """max_seq_length 24: 24 positions can be read, and the last one predicts one token more."""
    assert generate(tiny_model, torch.tensor([[5] * 20]), max_new_tokens=50).shape == (1, 25)
    with pytest.raises(DataError, match="at most 24"):
        generate(tiny_model, torch.tensor([[5] * 25]), max_new_tokens=1)
    with pytest.raises(DataError, match="empty"):
        next(stream(tiny_model, [], max_new_tokens=1))


def test_prompts_of_mixed_lengths_keep_their_order_and_stop_at_the_mark(
    tiny_model: BitNetTransformer,
) -> None:
    prompts = [[5, 6, 7], [8], [9, 10, 11], [12, 13]]
    together = continue_prompts(tiny_model, prompts, max_new_tokens=5, stop_id=31)
    alone = [continue_prompts(tiny_model, [prompt], max_new_tokens=5, stop_id=31)[0] for prompt in prompts]
    assert together == alone
    stop = together[0][1]
    cut = continue_prompts(tiny_model, prompts, max_new_tokens=5, stop_id=stop)[0]
    assert cut == together[0][: together[0].index(stop) + 1]


@pytest.mark.parametrize("kind", [torch.tensor, np.array])
@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=1.0), Sampling(temperature=1.0, top_k=2, top_p=0.9)]
)
@pytest.mark.parametrize("row", [[0.0, float("nan"), 1.0], [0.0, float("inf"), 1.0], [-float("inf")] * 3])
def test_logits_without_a_distribution_are_named(row: list[float], sampling: Sampling, kind: Any) -> None:
    logits = kind([[0.0, 1.0, 2.0], row])
    with pytest.raises(NotFiniteError, match="logits are NaN or infinite"):
        choose(logits, sampling, sampling.generator(torch.device("cpu")))


def test_a_token_may_be_excluded_with_minus_infinity() -> None:
    logits = torch.tensor([[0.0, -float("inf"), 1.0]]).expand(200, -1)
    sampling = Sampling(temperature=1.0)
    assert set(choose(logits, sampling, sampling.generator(logits.device)).tolist()) == {0, 2}
