"""Rotary position embedding (RoFormer, arXiv:2104.09864), in the rotate-half layout of Llama and BitNet 2B4T.

Dimension i of a head is paired with dimension i + D/2 and the pair is turned by the angle
position * theta^(-2i/D). Not here: the permuted layout that interleaves the pairs (an exporter's matter).
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_table(head_dim: int, length: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines for positions 0..length-1, each float32 (length, head_dim)."""
    frequency = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angle = torch.outer(torch.arange(length, dtype=torch.float64), frequency)
    angle = torch.cat((angle, angle), dim=-1)  # (length, D): both halves share their angles
    return angle.cos().float(), angle.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn queries or keys. x: (B, heads, T, D); cos, sin: (T, D). Returns x's shape and dtype."""
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return x * cos.to(x.dtype) + turned * sin.to(x.dtype)
