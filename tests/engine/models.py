"""Small models for tests of the packed engine."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bitnet.kernels import library
from bitnet.nn.config import BitNetConfig
from bitnet.nn.transformer import BitNetTransformer

needs_kernels = pytest.mark.skipif(library.loaded().library is None, reason=library.describe())

SHAPE: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 48,
    "num_layers": 3,
    "num_heads": 4,
    "num_kv_heads": 2,
    "ffn_hidden_size": 100,
    "max_seq_length": 200,
}


def small_model(seed: int = 0, **changes: Any) -> BitNetTransformer:
    """A model on the int8 path whose norms and weights are no defaults."""
    torch.manual_seed(seed)
    model = BitNetTransformer(BitNetConfig(**SHAPE | changes))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:
                weight.uniform_(0.5, 1.5)
            else:
                weight.mul_(3)
    model.set_product("int8")
    return model


def random_ids(model: BitNetTransformer, count: int, seed: int = 1) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(model.config.vocab_size, (count,), generator=generator).tolist()


@torch.no_grad()
def torch_logits(model: BitNetTransformer, ids: list[int]) -> Any:
    """float32 (len(ids), V) of the training model."""
    return model(torch.tensor([ids]))[0].numpy()
