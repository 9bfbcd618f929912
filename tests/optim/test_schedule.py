"""Rates at every boundary, in the numbers of the plan."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet.errors import ConfigError
from bitnet.optim.schedule import Schedule
from bitnet.train.config import TrainConfig

BASELINE = TrainConfig(seq_len=1024, batch_size=32, total_steps=60_000, warmup_steps=375)
STORIES = TrainConfig(seq_len=256, batch_size=32, total_steps=30_000, warmup_steps=250)


def test_baseline_rates_at_the_step_convention() -> None:
    rates = BASELINE.rates()
    assert rates.rates_at(1).lr == pytest.approx(0.0015 / 375)
    assert rates.rates_at(374).lr == pytest.approx(0.0015 * 374 / 375)
    assert rates.rates_at(375).lr == pytest.approx(0.0015)
    assert rates.rates_at(376).lr < 0.0015
    assert rates.rates_at(30_000).lr == pytest.approx(0.001)
    assert rates.rates_at(30_001).lr == pytest.approx(0.001 - (0.001 - 0.000015) / 30_000)
    assert rates.rates_at(60_000).lr == 0.000015


def test_weight_decay_is_switched_off_after_the_boundary() -> None:
    assert [BASELINE.rates().rates_at(n).wd for n in (1, 30_000, 30_001, 60_000)] == [0.1, 0.1, 0.0, 0.0]
    assert [STORIES.rates().rates_at(n).wd for n in (15_000, 15_001, 30_000)] == [0.1, 0.0, 0.0]


def test_stories_rates_at_their_boundaries() -> None:
    rates = STORIES.rates()
    assert rates.rates_at(250).lr == pytest.approx(0.0015)
    assert rates.rates_at(15_000).lr == pytest.approx(0.001)
    assert rates.rates_at(15_001).lr < 0.001
    assert rates.rates_at(30_000).lr == 0.000015


def test_update_zero_and_one_past_the_end_do_not_exist() -> None:
    for step in (0, 60_001):
        with pytest.raises(AssertionError):
            BASELINE.rates().rates_at(step)


@pytest.mark.parametrize(
    ("steps", "boundary", "warmup"), [(1000, 500, 100), (60_000, 30_000, 375), (5, 2, 0), (1, 1, 0)]
)
def test_num_steps_moves_the_boundary_to_half_and_limits_the_warmup(
    steps: int, boundary: int, warmup: int
) -> None:
    shorter = BASELINE.with_total_steps(steps)
    assert (shorter.total_steps, shorter.boundary, shorter.warmup_steps) == (steps, boundary, warmup)
    assert shorter.rates().rates_at(steps).lr == 0.000015 or steps == 1


def test_mandatory_checkpoints_surround_the_boundary() -> None:
    assert BASELINE.mandatory_checkpoints() == {0, 29_999, 30_000, 60_000}


@given(
    kind=st.sampled_from(["two_stage", "linear", "warm_down", "cosine"]),
    total=st.integers(2, 400),
    warmup=st.integers(0, 50),
    boundary=st.integers(1, 400),
)
def test_rates_stay_between_their_ends_and_never_jump(
    kind: str, total: int, warmup: int, boundary: int
) -> None:
    warmup, boundary = min(warmup, total), min(boundary, total)
    schedule = Schedule(
        kind=kind,
        total_steps=total,
        warmup_steps=warmup,
        stage1_end=boundary,
        peak_lr=1.0,
        stage2_lr=0.5,
        final_lr=0.1,
        stage1_wd=0.1,
        stage2_wd=0.0,
    )
    rates = [schedule.rates_at(step).lr for step in range(1, total + 1)]
    assert max(rates) <= 1.0 + 1e-12
    assert min(rates[warmup:], default=0.1) >= 0.1 - 1e-12
    falling = rates[max(warmup - 1, 0) :]
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(falling))
    assert all(a < b for a, b in itertools.pairwise(rates[:warmup]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"total_steps": 0}, "total_steps is 0"),
        ({"peak_lr": 0.0}, "peak_lr is 0.0"),
        ({"adam_beta1": 1.0}, "adam_beta1 is 1.0"),
        ({"warmup_steps": 60_001}, "exceeds"),
        ({"stage1_end": 70_000}, "outside 1..60000"),
        ({"final_lr": -1.0}, "final_lr is -1.0"),
    ],
)
def test_values_out_of_range_are_named(change: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(BASELINE, **change)
