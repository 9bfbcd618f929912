"""How far an update is from what it should be, on gradients of three numbers."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch

from bitnet.diagnose.check_gradients import BACKWARD, CLIPPING, compared, given
from bitnet.diagnose.reference_objectives import Wanted
from bitnet.diagnose.watch import Update
from bitnet.optim.schedule import Rates

RIGHT = Wanted(2.0, 0.0, {"w": torch.tensor([3.0, 4.0, 0.0])})


def update(gradient: list[float] | None, norm: float = 5.0, loss: float = 2.0) -> Update:
    report: Any = SimpleNamespace(step=7, loss=loss, penalty=0.0, grad_norm=norm)
    gradients = {"w": None if gradient is None else torch.tensor(gradient)}
    return Update(rates=Rates(0.1, 0.0), gradients=gradients, before={}, after={}, report=report)


def errors(one: Update, clip_norm: float = 10.0) -> dict[str, float]:
    found = compared([one], [RIGHT], clip_norm)
    return {kind: next(iter(places.values())) for kind, places in found.items()}


def test_the_right_gradient_has_no_error() -> None:
    assert all(error < 1e-6 for error in errors(update([3.0, 4.0, 0.0])).values())


def test_a_gradient_of_twice_the_length_points_the_right_way() -> None:
    found = errors(update([6.0, 8.0, 0.0], norm=10.0))
    assert found["direction"] < 1e-6
    assert math.isclose(found["length"], 1.0)


def test_clipping_leaves_the_limit() -> None:
    assert errors(update([0.6, 0.8, 0.0]), clip_norm=1.0)["clipping"] < 1e-6
    assert math.isclose(errors(update([0.3, 0.4, 0.0]), clip_norm=1.0)["clipping"], 0.5, rel_tol=1e-6)
    assert math.isclose(errors(update([3.0, 4.0, 0.0]), clip_norm=1.0)["clipping"], 4.0, rel_tol=1e-6)


def test_a_missing_gradient_is_infinitely_far() -> None:
    assert errors(update(None))["direction"] == math.inf


def test_losses_are_compared_in_nats_below_one_and_in_shares_above() -> None:
    assert math.isclose(errors(update([3.0, 4.0, 0.0], loss=2.2))["loss"], 0.1)


def test_the_worst_parameter_and_its_direction_are_named() -> None:
    found = compared([update([-3.0, -4.0, 0.0])], [RIGHT], 10.0)
    direction, length, clipping = given(found, BACKWARD, CLIPPING)
    assert (direction.ok, length.ok, clipping.ok) == (False, True, True)
    assert direction.detail == "w, update 7: the direction is opposite"
    assert clipping.suspect == "optimizer"
