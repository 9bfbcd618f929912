"""Each rule fires on what it is for, and on nothing milder."""

from __future__ import annotations

import pytest

from bitnet.train.observe.anomalies import (
    WINDOW,
    broken_samples,
    entropy_collapse,
    loss_spike,
    not_finite,
    repetition_surge,
)

FULL = [1.0] * WINDOW


def sample(mode: str = "greedy", entropy: float | None = 2.0, repetition: int = 3) -> dict[str, object]:
    broken = entropy is None
    numbers = {
        "mean_entropy": entropy,
        "max_repetition": repetition,
        "total_tokens": 50,
        "non_finite": broken,
    }
    return {"prompt": "Once", "mode": mode, **numbers}


def test_loss_spike_above_twice_the_mean_of_the_last_hundred() -> None:
    found = loss_spike(2.01, FULL, 2.0, 0.5)
    assert found is not None
    assert found.event == "loss_spike"
    assert "2.0100" in found.finding
    assert "1.0000" in found.finding
    assert loss_spike(2.0, FULL, 2.0, 0.5) is None


def test_loss_spike_needs_half_a_nat_and_a_full_window() -> None:
    small = [0.1] * WINDOW
    assert loss_spike(0.59, small, 2.0, 0.5) is None  # nearly six times the mean, but noise near zero
    assert loss_spike(0.61, small, 2.0, 0.5) is not None
    assert loss_spike(9.0, FULL[1:], 2.0, 0.5) is None


@pytest.mark.parametrize("refused", ["nan_inf_loss", "nan_inf_grad"])
def test_refused_update_is_an_anomaly_of_its_name(refused: str) -> None:
    found = not_finite(refused)
    assert found is not None
    assert found.event == refused
    assert not_finite(None) is None


def test_entropy_collapse_is_judged_over_all_prompts() -> None:
    rows = [sample(entropy=0.2), sample(entropy=1.7)]
    found = entropy_collapse(rows, 1.0)
    assert found is not None
    assert "0.9500" in found.finding
    assert entropy_collapse([sample(entropy=0.2), sample(entropy=1.9)], 1.0) is None
    assert entropy_collapse(rows, None) is None
    assert entropy_collapse([], 1.0) is None


def test_repetition_surge_looks_at_greedy_samples_only() -> None:
    assert repetition_surge([sample(repetition=20)], 20) is None
    found = repetition_surge([sample(), sample(repetition=21)], 20)
    assert found is not None
    assert "21 times among 50" in found.finding
    assert repetition_surge([sample(mode="stress", repetition=40)], 20) is None
    assert repetition_surge([sample(repetition=40)], None) is None


def test_samples_of_a_broken_model_are_an_anomaly_and_no_collapse() -> None:
    found = broken_samples([sample(), sample(mode="stress", entropy=None)])
    assert found is not None
    assert found.event == "nan_inf_logits"
    assert "1 of 2 samples" in found.finding
    assert "(stress)" in found.finding
    assert broken_samples([sample()]) is None
    assert entropy_collapse([sample(entropy=None)], 1.0) is None
    assert entropy_collapse([sample(entropy=None), sample(entropy=0.5)], 1.0) is not None
