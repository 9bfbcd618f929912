"""Rotary positions: a worked example and what they are for."""

from __future__ import annotations

import math

import pytest
import torch

from bitnet.nn.rotary import rotary_table, rotate


def test_the_rotary_table_by_worked_example() -> None:
    """Head width 4: pair (0, 2) turns by one radian a position, pair (1, 3) by 1/100."""
    cos, sin = rotary_table(4, 3, 10_000.0)
    turned = rotate(torch.tensor([1.0, 1.0, 0.0, 0.0]).view(1, 1, 1, 4), cos[2:], sin[2:]).flatten()
    assert turned.tolist() == pytest.approx([math.cos(2), math.cos(0.02), math.sin(2), math.sin(0.02)])


def test_rotated_products_depend_on_the_distance_only() -> None:
    """What rotary positions are for: q at 7 and k at 5 meet as q at 2 and k at 0."""
    cos, sin = rotary_table(8, 8, 10_000.0)
    q, k = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)

    def product(at: int, other: int) -> float:
        return float(
            (
                rotate(q, cos[at : at + 1], sin[at : at + 1])
                * rotate(k, cos[other : other + 1], sin[other : other + 1])
            ).sum()
        )

    assert product(7, 5) == pytest.approx(product(2, 0), abs=1e-5)
