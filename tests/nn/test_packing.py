"""Four codes in a byte, in the layout of Hugging Face."""

from __future__ import annotations

import torch

from bitnet.nn.packing import pack_ternary, unpack_ternary


def test_packing_worked_example_and_round_trip() -> None:
    column = torch.tensor([[-1], [0], [1], [1], [0], [-1], [1], [0]], dtype=torch.int8)
    assert pack_ternary(column).flatten().tolist() == [152, 73]
    codes = torch.randint(-1, 2, (12, 7), dtype=torch.int8)
    assert torch.equal(unpack_ternary(pack_ternary(codes)), codes)
