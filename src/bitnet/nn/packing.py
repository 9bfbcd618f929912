"""Four ternary codes in a byte, in the layout of Hugging Face's BitNet models.

Byte row r holds rows r, r + R, r + 2R, r + 3R, with R = out / 4; each code plus 1 takes two bits, the first
row the lowest. The column [-1, 0, 1, 1, 0, -1, 1, 0] packs to [152, 73].
"""

from __future__ import annotations

import torch
from torch import Tensor

PER_BYTE = 4


def pack_ternary(codes: Tensor) -> Tensor:
    """codes: (out, in) in {-1, 0, 1}, out a multiple of 4. Returns uint8 (out / 4, in)."""
    assert codes.shape[0] % PER_BYTE == 0, f"{codes.shape[0]} rows are not a multiple of {PER_BYTE}"
    parts = (codes + 1).to(torch.uint8).chunk(PER_BYTE)
    packed = torch.zeros_like(parts[0])
    for index, part in enumerate(parts):
        packed |= part << (2 * index)
    return packed


def unpack_ternary(packed: Tensor) -> Tensor:
    """packed: uint8 (R, in). Returns int8 (4R, in) in {-1, 0, 1}."""
    return torch.cat([((packed >> (2 * index)) & 3).to(torch.int8) - 1 for index in range(PER_BYTE)])
