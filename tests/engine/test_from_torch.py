"""The drop-in for the model: decoding, losses and judges run on it as on the model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models import needs_kernels, random_ids, small_model, torch_logits

from bitnet.engine.from_torch import PackedTransformer, packed
from bitnet.errors import ConfigError, DataError
from bitnet.generate.decode import continue_prompts, generate
from bitnet.generate.sampling import Sampling

pytestmark = needs_kernels


def both(**shape: object) -> tuple[object, PackedTransformer]:
    model = small_model(**shape)
    return model, PackedTransformer(packed(model, head="f32"))


def test_decoding_writes_what_the_model_writes() -> None:
    model, drop_in = both()
    prompts = torch.tensor([random_ids(model, 6, seed) for seed in range(5)])
    assert torch.equal(
        generate(drop_in, prompts, max_new_tokens=30), generate(model, prompts, max_new_tokens=30)
    )
    texts = [random_ids(model, count, seed=count) for count in (3, 7, 3, 12)]
    wanted = continue_prompts(model, texts, max_new_tokens=12, stop_id=5)
    assert continue_prompts(drop_in, texts, max_new_tokens=12, stop_id=5) == wanted


def test_it_stops_at_the_last_position_of_the_model() -> None:
    model, drop_in = both(max_seq_length=20)
    prompt = torch.tensor([random_ids(model, 15)])
    assert generate(drop_in, prompt, max_new_tokens=50).shape == (1, 21)
    with pytest.raises(DataError, match="the model reads at most 20"):
        generate(drop_in, torch.tensor([random_ids(model, 21)]), max_new_tokens=1)
    with pytest.raises(ConfigError, match="21 tokens do not fit the model's max_seq_length of 20"):
        drop_in(torch.tensor([random_ids(model, 21)]))


def test_a_seed_draws_the_same_text_again() -> None:
    model, drop_in = both()
    prompt, sampling = torch.tensor([random_ids(model, 6)]), Sampling(temperature=1.0, seed=3)
    texts = [generate(drop_in, prompt, max_new_tokens=10, sampling=sampling) for _ in range(2)]
    assert torch.equal(*texts)
    assert torch.equal(texts[0], generate(model, prompt, max_new_tokens=10, sampling=sampling))


def test_logits_of_whole_rows_and_of_segments_are_those_of_the_model() -> None:
    """A segment is read as a text of its own: rotary positions tell distances only."""
    model, drop_in = both()
    ids = torch.tensor([random_ids(model, 30, seed) for seed in range(3)])
    segments = torch.tensor([[0] * 30, [0] * 10 + [1] * 20, [0] * 29 + [1]])
    with torch.no_grad():
        for context in ({}, {"segments": segments}):
            expected, found = model(ids, **context), drop_in(ids, **context)
            per_token = (found - expected).abs().amax(-1) / expected.abs().max()
            assert float(per_token.median()) < 1e-6
            assert float(per_token.max()) < 2e-2


def test_a_cache_is_taken_back_and_branched_like_the_models() -> None:
    model, drop_in = both()
    ids, more = random_ids(model, 20), random_ids(model, 6, seed=2)
    cache = drop_in.new_cache(2, 40)
    assert (cache.rows, cache.length, cache.capacity) == (2, 0, 40)
    drop_in.next_logits(torch.tensor([ids, ids[::-1]]), cache)
    branch = cache.branch(torch.tensor([1, 0, 1]), 10)
    assert (branch.rows, branch.length, branch.capacity) == (3, 20, 30)
    logits = drop_in.next_logits(torch.tensor([more, more, more]), branch).numpy()
    assert np.array_equal(logits[0], logits[2])
    assert np.allclose(logits[1], torch_logits(model, ids + more)[-1], atol=1e-2)
    assert np.array_equal(logits[1:2], packed(model, head="f32").new_rows(1).read({0: ids + more}))

    cache.length = 5
    again = drop_in(torch.tensor([ids[5:], ids[::-1][5:]]), cache)
    assert torch.equal(again[0, -1], drop_in(torch.tensor([ids]))[0, -1])


def test_it_has_no_gradients_and_lives_on_the_cpu() -> None:
    _, drop_in = both()
    assert list(drop_in.parameters()) == []
    assert drop_in.device == torch.device("cpu")
