"""The definition of each way of sampling by worked example, and choices that break it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from bitnet.diagnose import check_sampling
from bitnet.diagnose.check_sampling import allowed, distance, distributions
from bitnet.generate import sampling
from bitnet.generate.sampling import Sampling

LOGITS = torch.tensor([0.1, 0.4, 0.2, 0.3]).log()


def failed() -> set[str]:
    return {check.name for check in distributions() if not check.ok}


@pytest.mark.parametrize(
    ("how", "right"),
    [
        (Sampling(temperature=1.0), [0.1, 0.4, 0.2, 0.3]),
        (Sampling(temperature=0.5), [1 / 30, 16 / 30, 4 / 30, 9 / 30]),
        (Sampling(temperature=1.0, top_k=2), [0, 4 / 7, 0, 3 / 7]),
        (Sampling(temperature=1.0, top_p=0.6), [0, 4 / 7, 0, 3 / 7]),
        (Sampling(temperature=1.0, top_k=3, top_p=0.5), [0, 4 / 7, 0, 3 / 7]),
        (Sampling(temperature=1.0, top_p=0.1), [0, 1, 0, 0]),
    ],
)
def test_what_a_way_of_sampling_means(how: Sampling, right: list[float]) -> None:
    assert torch.allclose(allowed(LOGITS, how), torch.tensor(right, dtype=torch.float64), atol=1e-6)


def test_distance_of_distributions() -> None:
    assert math.isclose(distance(torch.tensor([1.0, 0.0]), torch.tensor([0.25, 0.75])), 0.75)


def test_sampling_here_is_as_defined() -> None:
    assert failed() == set()


def test_a_token_that_should_not_be_drawn_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    real = sampling.choose

    def careless(logits: Any, how: Sampling, generator: Any) -> Any:
        chosen = real(logits, how, generator)
        chosen[0] = logits[0].argmin()
        return chosen

    monkeypatch.setattr(check_sampling.sampling, "choose", careless)
    assert failed() == {"draws follow their distribution", "greedy choice is argmax"}
