"""How two runs are compared: rows, lines of metrics, and what a probe counted."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bitnet.diagnose import reference
from bitnet.diagnose.check_rehearsal import apart, probe_gaps, retention, same_rows


@pytest.mark.parametrize(
    ("one", "other", "difference"),
    [
        ({"loss": 2.0, "mfu": 1.0}, {"loss": 2.0, "mfu": 9.0}, 0.0),
        ({"loss": 2.0}, {"loss": 2.5}, 0.25),
        ({"loss": 0.1}, {"loss": 0.2}, 0.1),
        ({"loss": 2.0}, {"other": 2.0}, math.inf),
        ([1.0, 2.0], [1.0], math.inf),
        ("left", "left", 0.0),
        ("left", "right", math.inf),
        (None, 0.0, math.inf),
        (True, 1.0, 0.0),
        ([{"a": [1.0, {"b": 4.0}]}], [{"a": [1.0, {"b": 5.0}]}], 0.25),
    ],
)
def test_lines_are_compared_figure_by_figure(one: Any, other: Any, difference: float) -> None:
    """Times are left out; small figures are compared by their difference, large ones by its share."""
    assert apart(one, other) == pytest.approx(difference)


def test_rows_of_a_run_in_one_go_and_of_one_in_parts() -> None:
    settings = SimpleNamespace(train=SimpleNamespace(total_steps=3))
    rows = [[0, 1], [2, 3], [4, 5]]
    good: Any = SimpleNamespace(settings=settings, whole_rows=rows, parts_rows=rows)
    assert same_rows(good).ok
    again: Any = SimpleNamespace(settings=settings, whole_rows=rows, parts_rows=[[0, 1], [2, 3], [2, 3]])
    assert same_rows(again).value == {"in one go": True, "resumed": False}
    assert not same_rows(again).ok


def test_a_probe_is_counted_once_more() -> None:
    """A fused q, k, v: four rows of queries, two of keys, two of values, each with a scale of its own."""
    torch.manual_seed(3)
    weight = torch.randn(8, 4)
    codes, scale = reference.ternary(weight, (4, 2, 2))
    shares = {
        f"x_{name}_pct": float((codes == code).double().mean())
        for name, code in (("neg1", -1), ("zero", 0), ("pos1", 1))
    }
    row: dict[str, Any] = {**shares, "x_scale": [float(scale[first]) for first in (0, 4, 6)]}
    assert probe_gaps(weight, row, "x", width=4) == (pytest.approx(0.0), pytest.approx(0.0))
    wrong = {
        **row,
        "x_zero_pct": row["x_zero_pct"] + 0.25,
        "x_scale": [2 * row["x_scale"][0], *row["x_scale"][1:]],
    }
    assert probe_gaps(weight, wrong, "x", width=4) == (pytest.approx(0.25), pytest.approx(1.0))


def test_retention_by_its_worked_example() -> None:
    assert retention().ok
