"""Figures that people read are not rounder than what was measured."""

from __future__ import annotations

import pytest

from bitnet.units import figure, parameters_label


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.994, "0.9940"),
        (1.0, "1.0000"),
        (0.0, "0.0000"),
        (0.9999966, "0.999997"),
        (0.00001, "0.00001"),
        (73.0, "73.0000"),
    ],
)
def test_one_illegal_move_in_300_000_is_not_rounded_away(value: float, text: str) -> None:
    assert figure(value) == text


@pytest.mark.parametrize(
    ("count", "label"),
    [
        (950, "1K"),
        (12_640, "13K"),
        (99_400, "99K"),
        (100_000, "0.1M"),
        (224_736, "0.2M"),
        (9_949_999, "9.9M"),
        (9_950_000, "10M"),
        (95_367_936, "95M"),
        (132_963_072, "133M"),
        (2_400_000_000, "2.4B"),
    ],
)
def test_a_number_of_parameters_is_written_short(count: int, label: str) -> None:
    assert parameters_label(count) == label
