"""Whether an update did what its definition says, on two parameters and without a model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bitnet.diagnose.check_optimizer import changes, gap, rates_used
from bitnet.diagnose.reference_updates import Updater
from bitnet.diagnose.watch import Update
from bitnet.optim.schedule import Rates

TRAINING: dict[str, Any] = (
    {"optimizer": "adamw", "adam_beta1": 0.9, "adam_beta2": 0.95, "schedule": "linear"}
    | {"total_steps": 10, "warmup_steps": 2, "stage1_end": 5, "stage1_wd": 0.1, "stage2_wd": 0.0}
    | {"peak_lr": 0.01, "final_lr": 0.001}
)
SUBJECT: Any = SimpleNamespace(training=TRAINING, device=torch.device("cpu"))
BEFORE = {"matrix": torch.tensor([[1.0, -2.0]]), "norm": torch.tensor([1.0, 1.0])}
GRADIENTS = {"matrix": torch.tensor([[0.5, 0.5]]), "norm": torch.tensor([-0.1, 0.2])}


def update(factor: float = 1.0, lr: float = 0.005, stays: str = "") -> Update:
    """Update 1 with its right change times a factor."""
    right = Updater(TRAINING, {}).changes(BEFORE, GRADIENTS, 0.005, 0.1)
    after = {
        name: BEFORE[name] if name == stays else (BEFORE[name] + factor * change).float()
        for name, change in right.items()
    }
    report: Any = SimpleNamespace(step=1, lr=lr, wd=0.1)
    return Update(rates=Rates(lr, 0.1), gradients=GRADIENTS, before=BEFORE, after=after, report=report)


def test_rates_are_those_of_the_step() -> None:
    assert gap(Rates(0.005, 0.1), TRAINING, 1) == 0
    assert gap(Rates(0.01, 0.1), TRAINING, 1) == pytest.approx(0.005)
    assert gap(Rates(0.001, 0.1), TRAINING, 10) == pytest.approx(0.1)
    (right,), (late,) = rates_used(SUBJECT, [update()]), rates_used(SUBJECT, [update(lr=0.01)])
    assert (right.ok, late.ok) == (True, False)
    assert late.detail.startswith("update 1: ran at, or reported, other rates")


def test_the_change_of_weights_is_that_of_the_definition() -> None:
    assert all(check.ok for check in changes(SUBJECT, [update()], "first updates"))
    moves, as_defined = changes(SUBJECT, [update(factor=1.1)], "first updates")
    assert (moves.ok, as_defined.ok) == (True, False)
    assert as_defined.value == pytest.approx(0.1, rel=0.01)


def test_a_parameter_that_stays_is_named() -> None:
    moves, as_defined = changes(SUBJECT, [update(stays="norm")], "first updates")
    assert moves.detail == "not moved: norm"
    assert not as_defined.ok


def test_updates_without_a_gradient_are_passed_over() -> None:
    report: Any = SimpleNamespace(step=1)
    nothing = Update(before=BEFORE, after=BEFORE, report=report)
    assert all(check.ok for check in changes(SUBJECT, [nothing], "first updates"))
