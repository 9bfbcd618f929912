"""Attention in the fastest number format: that of autocast, or float32 for short rows in training on a CPU.

Autocast makes queries, keys and values bf16. On a CPU with bf16 units that pays for long rows alone, because
torch converts between the two products of attention: forward and backward on one thread of an EPYC Zen 4
(torch 2.13.0) take 20.8 ms in bf16 and 8.3 in float32 at 64 tokens, 85 and 77 at 384, 142 and 145 at 512, and
176 and 211 at 1,024 (docs/log.md). Not here: positions (rotary.py) and caches (kv_cache.py).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LONG_ROW = 512
"""Tokens from which on attention is computed in bf16 under autocast on a CPU; the module has the times."""


def stays_float32(x: Tensor, tokens: int) -> bool:
    """Whether attention over rows of so many tokens keeps float32 within autocast.

    x: queries, or what they are made of. Only in training, so that answers of a trained model do not depend
    on it. Ordinary layers return bf16 under autocast, and attention then keeps that.
    """
    on_cpu = x.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    return on_cpu and torch.is_grad_enabled() and x.dtype == torch.float32 and tokens < LONG_ROW


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, causal: bool) -> Tensor:
    """softmax(q k^T / sqrt(D)) v: (B, H, T, D) of queries and (B, G, S, D) of keys and values.

    mask: bool, broadcast to (B, H, T, S), true where a query may attend. Returns (B, H, T, D), under autocast
    in its format unless `stays_float32`.
    """
    how = {"is_causal": causal, "enable_gqa": q.shape[1] != k.shape[1]}
    if not stays_float32(q, q.shape[2]):
        return F.scaled_dot_product_attention(q, k, v, mask, **how)
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(q, k, v, mask, **how)
