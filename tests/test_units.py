"""Figures that people read are not rounder than what was measured."""

from __future__ import annotations

import pytest

from bitnet.units import byte_size, duration, figure, parameters_label, scaled, short_count


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


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (200, "3m20s"),
        (3599.6, "1h00m"),
        (36_120, "10h02m"),
        (172_799, "47h59m"),
        (172_800, "2.0 days"),
        (86_400 * 999, "999.0 days"),
        (86_400 * 365.25 * 45, "45 years"),
    ],
)
def test_a_time_is_written_in_the_two_largest_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "prefixed", "counted"),
    [
        (12, "12 ", "12"),
        (999.4, "999 ", "999.4"),
        (1_000, "1 k", "1 k"),
        (4_830_000, "4.83 M", "4.83 M"),
        (1.97e9, "1.97 G", "1.97 B"),
        (5.2e21, "5.2 Z", "5.2e+09 T"),
    ],
)
def test_large_numbers_have_three_digits_and_a_letter(value: float, prefixed: str, counted: str) -> None:
    assert scaled(value) == prefixed
    assert byte_size(value) == f"{prefixed}B"
    assert short_count(value) == counted
