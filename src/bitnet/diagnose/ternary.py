"""Statistics of the ternary weights of a model."""

from __future__ import annotations

import torch

from bitnet.nn.transformer import BitNetTransformer


@torch.no_grad()
def zero_share(model: BitNetTransformer) -> float:
    """Share of ternary codes that are 0 over the whole model, 0..1."""
    zeros, total = 0, 0
    for layer in model.bit_linears().values():
        codes = layer.weight_quantized
        zeros += int((codes == 0).sum())
        total += codes.numel()
    return zeros / total
