"""What a run's files say of its updates: by worked example."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from bitnet.diagnose.check_run import Repeated, moved_otherwise, probes, repeats, scalars
from bitnet.diagnose.finding import Check
from bitnet.experiments.arithmetic import QUICK
from bitnet.run.layout import RunLayout


@pytest.fixture
def layout(tmp_path: Path) -> RunLayout:
    found = RunLayout(tmp_path)
    found.scalars.parent.mkdir(parents=True)
    return found


def row(step: int, **changes: Any) -> dict[str, Any]:
    rates = QUICK.train.rates().rates_at(step)
    tokens = step * QUICK.train.tokens_per_step
    return {"step": step, "loss": 2.0, "lr": rates.lr, "wd": rates.wd, "tokens_seen": tokens, **changes}


def written(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")


def failed(checks: Any) -> list[str]:
    found: list[Check] = [check for check in checks if not check.ok]
    return [check.name for check in found]


@pytest.mark.parametrize(
    ("rows", "name"),
    [
        ([row(1), row(2), row(3)], None),
        ([], None),
        ([row(1), row(3)], "every update is recorded once"),
        ([row(1), row(1), row(2)], "every update is recorded once"),
        ([row(1), row(2, loss=None)], "recorded losses are numbers"),
        ([row(1), row(2, lr=0.5)], "recorded rates follow the schedule"),
        ([row(1), row(2, lr=None)], "recorded rates follow the schedule"),
        ([row(1), row(2, tokens_seen=1)], "tokens are counted right"),
    ],
)
def test_scalars(layout: RunLayout, rows: list[dict[str, Any]], name: str | None) -> None:
    written(layout.scalars, rows)
    assert failed(scalars(layout, QUICK, resumed=True)) == ([name] if name else [])


def test_the_distance_of_a_repeated_update_is_in_units_of_the_recorded_change() -> None:
    before, right = {"w": torch.zeros(2)}, {"w": torch.tensor([3.0, 4.0])}
    assert moved_otherwise(before, right, right) == 0.0
    assert moved_otherwise(before, {"w": torch.tensor([3.0, 4.5])}, right) == pytest.approx(0.1)
    assert moved_otherwise(before, {"w": torch.ones(2)}, before) == math.inf, "nothing moved when it ran"
    assert moved_otherwise(before, before, before) == 0.0


def test_who_is_suspected_where_a_loss_does_not_repeat() -> None:
    """Where the held-out loss does not come back either, the model computes otherwise; else the rows do."""
    wrong = Repeated(first={"update 1": 0.0, "update 5": 0.3})
    (found,) = repeats(wrong, reloads=True)
    assert (found.ok, found.suspect) == (False, "data")
    assert "update 5" in found.detail
    (found,) = repeats(wrong, reloads=False)
    assert (found.ok, found.suspect) == (False, "quantization")
    (found,) = repeats(Repeated(first={"update 1": 0.0}), reloads=False)
    assert (found.ok, found.suspect) == (True, "data")


def test_the_second_update_and_the_weights_speak_about_the_optimizer() -> None:
    found = list(repeats(Repeated(second={"update 6": 0.3}, moved={"update 5": 0.3}), reloads=True))
    assert [(check.ok, check.suspect) for check in found] == [(False, "optimizer")] * 2
    assert list(repeats(Repeated(), reloads=True)) == []


@pytest.mark.parametrize(
    ("flips", "finished", "ok"),
    [
        ([0.3, 0.2, 0.1, 0.01], True, True),
        ([0.0, 0.0, 0.0, 0.0], True, False),
        ([0.1, 0.1, 0.2, 0.3], True, False),
        ([0.1, 0.1, 0.2, 0.3], False, True),
    ],
)
def test_codes_flip_early_and_settle_late(
    layout: RunLayout, flips: list[float], finished: bool, ok: bool
) -> None:
    written(layout.quantization, [{"step": n, "flipped_pct": flip} for n, flip in enumerate(flips)])
    (found,) = probes(layout, 10, finished=finished)
    assert found.ok is ok
