"""What `bitnet experiments` shows as a variant's result."""

from __future__ import annotations

from typing import Any

import pytest

from bitnet.cli.catalogue import find_experiment
from bitnet.experiments import measured


def row(variant: str, weights: str, result: str) -> dict[str, Any]:
    facts = {"tokens": 1000, "hardware": "a laptop", "minutes": 2.0, "commit": "abc1234"}
    return {"experiment": "tinystories", "variant": variant, "weights": weights, "result": result, **facts}


def test_the_newest_ternary_result_is_shown_and_not_its_control(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row("quick", "ternary", "old"), row("quick", "ternary", "new"), row("quick", "full", "control"), row("best", "ternary", "best")]
    monkeypatch.setattr(measured, "measured", lambda: rows)
    assert measured.measured_result("tinystories", "quick") == "new (1,000 tokens, a laptop, 2.0 min, commit abc1234)"
    assert measured.measured_result("tinystories", "reference") is None
    assert measured.measured_result("arithmetic", "quick") is None


def test_what_was_measured_has_the_size_of_its_variant() -> None:
    """A variant whose model changes needs a new measurement. How many tokens a run had stands in its row."""
    assert measured.measured()
    for row in measured.measured():
        config = find_experiment(row["experiment"]).variants[row["variant"]].config
        found = (row["experiment"], row["variant"], row["parameters"])
        assert found == (row["experiment"], row["variant"], config.model.total_params)
