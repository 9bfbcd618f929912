"""What the losses of a run say, from the losses alone."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from bitnet.diagnose.check_trained import curve, flat, measured, recorded_losses
from bitnet.run.layout import RunLayout

UNIFORM = math.log(32)


def missed(losses: list[float]) -> set[str]:
    return {check.name for check in curve(losses, UNIFORM) if not check.ok}


def test_a_loss_that_begins_at_a_uniform_guess_and_falls_is_healthy() -> None:
    assert missed([float(x) for x in np.linspace(UNIFORM, 1.0, 100)]) == set()
    assert missed([UNIFORM, 3.0]) == set()


def test_a_start_that_is_sure_of_wrong_answers_is_seen() -> None:
    assert missed([164.0, *np.linspace(3.4, 1.0, 99)]) == {"recorded loss begins at ln(V)"}


def test_a_loss_that_rises_at_the_end_is_seen() -> None:
    losses = [*np.linspace(3.4, 1.0, 80), *np.linspace(1.0, 3.0, 20)]
    assert missed(losses) == {"loss ends where it was lowest"}


def test_flat_is_less_than_one_percent_over_the_last_fifth() -> None:
    assert flat([3.0] * 80 + [1.0] * 20)
    assert not flat([float(x) for x in np.linspace(3.0, 1.0, 100)])
    assert flat([2.0])


def write(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_losses_and_figures_are_those_up_to_the_step(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path)
    write(layout.scalars, [{"step": 1, "loss": 3.0}, {"step": 2, "loss": None}, {"step": 3, "loss": 2.0}])
    assert recorded_losses(layout, 2) == [3.0]
    assert recorded_losses(layout, 3) == [3.0, 2.0]

    write(layout.evaluations, [{"step": 3, "eval_loss": 2.5, "exact_match": 0.5, "note": "text"}])
    assert measured(layout, 3) == {"step": 3, "nats_per_token": 2.5, "exact_match": 0.5}
    assert measured(layout, 4) == {}
    layout.verdict.parent.mkdir(parents=True, exist_ok=True)
    layout.verdict.write_text(json.dumps({"step": 3, "metrics": {"exact_match": 0.9}}), encoding="utf-8")
    assert measured(layout, 3) == {"exact_match": 0.9}
