"""Generation with a cache equals reading everything again, and a seed repeats what it drew."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bitnet.generate.decode import generate
from bitnet.generate.sampling import Sampling
from bitnet.nn.config import BitNetConfig
from bitnet.nn.transformer import BitNetTransformer


@torch.no_grad()
def recomputed(model: BitNetTransformer, ids: Tensor, new: int) -> Tensor:
    """Greedy continuation that reads the whole text again for every token."""
    for _ in range(new):
        ids = torch.cat((ids, model(ids)[:, -1].argmax(-1, keepdim=True)), dim=1)
    return ids


@pytest.mark.parametrize("product", ["float", "int8"])
def test_cached_generation_equals_full_recomputation(tiny_config: BitNetConfig, product: Any) -> None:
    """Up to the very last position the model has."""
    torch.manual_seed(2)
    model = BitNetTransformer(tiny_config)
    model.set_product(product)
    prompts = torch.randint(0, 32, (4, 5))
    assert torch.equal(generate(model, prompts, max_new_tokens=19), recomputed(model, prompts, 19))


def test_sampled_generation_is_repeated_by_its_seed(tiny_model: BitNetTransformer) -> None:
    prompt = torch.randint(0, 32, (1, 3))
    first, again, other = (
        generate(
            tiny_model, prompt, max_new_tokens=12, sampling=Sampling(temperature=1.0, seed=seed)
        ).tolist()
        for seed in (5, 5, 6)
    )
    assert first == again
    assert first != other
