"""Greedy text without torch is the greedy text of bitnet.generate."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from models import needs_kernels, random_ids, small_model

from bitnet.engine.decoder import PackedDecoder
from bitnet.engine.from_torch import packed
from bitnet.engine.greedy import greedy
from bitnet.errors import DataError, NotFiniteError
from bitnet.generate.decode import generate

pytestmark = needs_kernels


@pytest.mark.parametrize("most", [1, 12, 500])
def test_it_writes_what_generate_writes_up_to_the_last_position(most: int) -> None:
    model = small_model(max_seq_length=30)
    prompt = random_ids(model, 9)
    expected = generate(model, torch.tensor([prompt]), max_new_tokens=most)[0, 9:].tolist()
    assert list(greedy(packed(model, head="f32"), prompt, most)) == expected
    assert len(expected) == min(most, 22)


def test_prompts_that_cannot_be_read_are_refused() -> None:
    decoder = packed(small_model(max_seq_length=30))
    with pytest.raises(DataError, match="the prompt is empty"):
        next(greedy(decoder, [], 5))
    with pytest.raises(DataError, match="the prompt has 31 tokens, the model reads at most 30"):
        next(greedy(decoder, [1] * 31, 5))


def test_logits_that_are_not_finite_are_named() -> None:
    decoder = packed(small_model())
    norm = np.full_like(decoder.weights.final_norm, np.nan)
    broken = PackedDecoder(decoder.config, decoder.weights._replace(final_norm=norm))
    with pytest.raises(NotFiniteError, match="logits are NaN or infinite"):
        next(greedy(broken, [1, 2], 5))
    assert dataclasses.asdict(broken.config) == dataclasses.asdict(decoder.config)
