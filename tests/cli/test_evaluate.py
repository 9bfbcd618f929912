"""What `bitnet evaluate` prints must not be rounder than what it measured."""

from __future__ import annotations

import pytest

from bitnet.cli.evaluate import figure


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.994, "0.9940"), (1.0, "1.0000"), (0.0, "0.0000"), (0.9999966, "0.999997"), (0.00001, "0.00001"), (73.0, "73.0000")],
)
def test_one_illegal_move_in_300_000_is_not_rounded_away(value: float, text: str) -> None:
    assert figure(value) == text
