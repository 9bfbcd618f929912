"""Attention keeps float32 for short rows in training under autocast, and nowhere else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bitnet.nn import attend as module
from bitnet.nn.attend import LONG_ROW, attend
from bitnet.nn.config import BitNetConfig
from bitnet.nn.transformer import BitNetTransformer, segment_mask


def heads(tokens: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    sides = [(2, count, tokens, 8) for count in (4, 2, 2)]
    return [torch.randn(side, generator=generator).to(dtype).requires_grad_() for side in sides]


def trained(parts: list[Tensor], **how: Any) -> list[Tensor]:
    """What attention returns under autocast, and its gradients."""
    with torch.autocast("cpu", torch.bfloat16):
        y = attend(*parts, **how)
    return [y.detach(), *torch.autograd.grad(y.float().square().sum(), parts)]


@pytest.mark.parametrize("segments", [False, True])
def test_short_rows_are_attended_to_in_float32_and_equal_bf16_within_its_rounding(
    monkeypatch: pytest.MonkeyPatch, segments: bool
) -> None:
    mask = segment_mask(torch.tensor([[0] * 7 + [1] * 13] * 2)) if segments else None
    parts, how = heads(20), {"mask": mask, "causal": mask is None}
    short = trained(parts, **how)
    plain = F.scaled_dot_product_attention(*parts, mask, is_causal=mask is None, enable_gqa=True)
    assert torch.equal(short[0], plain)
    monkeypatch.setattr(module, "LONG_ROW", 20)
    long = trained(parts, **how)
    assert (short[0].dtype, long[0].dtype) == (torch.float32, torch.bfloat16)
    for one, other in zip(short, long, strict=True):
        # Inputs, weights, output and their gradients are each rounded to 8 bits once.
        assert float((one - other.float()).norm() / one.norm()) < 4 * 2**-8
        assert not torch.equal(one, other.float())


def test_long_rows_inference_and_bf16_inputs_keep_the_format_of_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert attend(*heads(LONG_ROW - 1), causal=True).dtype == torch.float32
        assert attend(*heads(LONG_ROW), causal=True).dtype == torch.bfloat16
        assert attend(*heads(20, torch.bfloat16), causal=True).dtype == torch.bfloat16
        with torch.no_grad():
            assert attend(*heads(20), causal=True).dtype == torch.bfloat16
    assert attend(*heads(20), causal=True).dtype == torch.float32


@pytest.mark.parametrize("fused", [False, True])
def test_a_model_trains_with_it_in_both_forms(
    tiny_config: BitNetConfig, monkeypatch: pytest.MonkeyPatch, fused: bool
) -> None:
    torch.manual_seed(1)
    model = BitNetTransformer(tiny_config)
    model.set_product("packed", torch.bfloat16, fused=fused)
    ids = torch.arange(24).view(2, 12) % tiny_config.vocab_size
    read: list[torch.dtype] = []
    real = F.scaled_dot_product_attention

    def watched(*parts: Any, **how: Any) -> Tensor:
        read.append(torch.bfloat16 if torch.is_autocast_enabled("cpu") else parts[0].dtype)
        return real(*parts, **how)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    with torch.autocast("cpu", torch.bfloat16):
        model(ids)
        with torch.no_grad():
            model(ids)
    layers = tiny_config.num_layers
    assert read == [torch.float32] * layers + [torch.bfloat16] * layers
