"""The two objectives against their formulas, and the reduction that a setting chooses."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bitnet.data.stream import Batch, shifted
from bitnet.errors import ConfigError
from bitnet.nn.config import BitNetConfig
from bitnet.nn.transformer import BitNetTransformer
from bitnet.optim.optimizer import Optimizers
from bitnet.train.config import TrainConfig
from bitnet.train.loop import StepReport, train_steps
from bitnet.train.objective import (
    NextToken,
    Preference,
    margins,
    recent_tokens,
    row_log_probabilities,
    summed_loss,
)


def two_pairs() -> tuple[torch.Tensor, Batch]:
    """Random scores, and four rows of which 3, 5, 2 and 4 targets count."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(4, 6, 11, generator=generator)
    ids = torch.randint(0, 11, (4, 6), generator=generator)
    mask = torch.arange(6) < torch.tensor([3, 5, 2, 4])[:, None]
    return logits, Batch(ids, ids.roll(-1, 1), mask, reference=torch.tensor([-9.0, -12.0, -5.0, -8.0]))


def test_log_probability_of_a_row_is_the_sum_over_its_scored_targets() -> None:
    logits, batch = two_pairs()
    log_p = logits.log_softmax(-1)
    by_hand = [
        sum(float(log_p[row, t, batch.targets[row, t]]) for t in range(6) if batch.loss_mask[row, t])
        for row in range(4)
    ]
    assert row_log_probabilities(logits, batch).tolist() == pytest.approx(by_hand, rel=1e-5)
    assert float(summed_loss(logits, batch)) == pytest.approx(-sum(by_hand), rel=1e-5)
    assert NextToken().cases([batch]) == 14


@pytest.mark.parametrize("last", [1, 4, 64])
def test_unlikelihood_is_that_of_the_distinct_recent_tokens_but_the_next(last: int) -> None:
    """Section 5.1 of arXiv:1908.04319, position by position, with a window."""
    logits, batch = two_pairs()
    p = logits.softmax(-1)
    by_hand = 0.0
    for row in range(4):
        for t in range(6):
            recent = set(batch.input_ids[row, max(t - last + 1, 0) : t + 1].tolist()) - {
                int(batch.targets[row, t])
            }
            if batch.loss_mask[row, t]:
                by_hand -= sum(math.log(1 - float(p[row, t, token])) for token in recent)
    assert by_hand > 1
    loss, penalty = NextToken(0.5, last).terms(logits, batch).tolist()
    assert penalty == pytest.approx(0.5 * by_hand, rel=1e-5)
    assert loss == pytest.approx(float(summed_loss(logits, batch)))
    assert NextToken().terms(logits, batch).tolist() == [loss, 0]


def test_unlikelihood_of_what_is_certain_is_finite_and_pushes_no_further() -> None:
    logits = torch.tensor([[[0.0, 60.0]]], requires_grad=True)
    batch = Batch(torch.tensor([[1]]), torch.tensor([[0]]), torch.ones(1, 1, dtype=torch.bool))
    penalty = NextToken(1.0, 3).terms(logits, batch)[1]
    penalty.backward()
    assert math.isfinite(float(penalty.detach()))
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())


def test_of_equal_tokens_the_nearest_counts() -> None:
    ids = torch.tensor([[5, 7, 5, 5, 2]])
    recent, counts = recent_tokens(ids, torch.tensor([[7, 5, 5, 2, 7]]), 4)
    found = [recent[0, t][counts[0, t]].tolist() for t in range(5)]
    assert found == [[5], [7], [7], [5, 7], [2, 5]]


def test_the_preference_loss_is_that_of_the_paper() -> None:
    """Equation 7 of arXiv:2305.18290, pair by pair."""
    logits, batch = two_pairs()
    assert batch.reference is not None
    gained = (row_log_probabilities(logits, batch) - batch.reference).tolist()
    pairs = [gained[0] - gained[1], gained[2] - gained[3]]
    by_hand = sum(math.log(1 + math.exp(-0.3 * margin)) for margin in pairs)
    objective = Preference(beta=0.3)
    assert margins(logits, batch).tolist() == pytest.approx(pairs, rel=1e-5)
    assert objective.terms(logits, batch).tolist() == [pytest.approx(by_hand, rel=1e-5), 0]
    assert objective.cases([batch, batch]) == 4


def test_it_is_ln_2_where_nothing_has_changed_and_falls_towards_the_chosen() -> None:
    logits, batch = two_pairs()
    logits.requires_grad_(True)
    batch = batch._replace(reference=row_log_probabilities(logits, batch).detach())
    loss = Preference(beta=0.1).terms(logits, batch)[0]
    assert float(loss.detach()) / 2 == pytest.approx(math.log(2))
    (gradient,) = torch.autograd.grad(loss, [logits])
    after = row_log_probabilities((logits - gradient).detach(), batch) - batch.reference  # type: ignore[operator]
    assert (after[0::2] > 0).all()
    assert (after[1::2] < 0).all()


class Rows:
    """Rows with 1 to 8 scored tokens."""

    def rows(self, numbers: NDArray[np.int64]) -> Batch:
        return shifted(
            (numbers[:, None] * 7 + np.arange(9) * 3) % 32, np.arange(9) <= 1 + numbers[:, None] % 8
        )

    def epochs(self, rows: int) -> float:
        return 1.0

    def fingerprint(self) -> dict[str, Any]:
        return {}


def test_a_sum_has_the_gradient_of_all_scored_tokens_and_reports_the_mean(tiny_config: BitNetConfig) -> None:
    def report(reduction: Any) -> tuple[float, float]:
        torch.manual_seed(5)
        model = BitNetTransformer(tiny_config)
        train = TrainConfig(seq_len=8, batch_size=8, total_steps=1, loss_reduction=reduction)
        (one,) = train_steps(model, model, Rows(), Optimizers(model, train.optimizer_config()), train)
        return one.loss, one.grad_norm

    mean, total = report("mean"), report("sum")
    scored = int(Rows().rows(np.arange(8)).loss_mask.sum())
    assert total[0] == pytest.approx(mean[0], rel=1e-6)
    assert total[1] == pytest.approx(mean[1] * scored, rel=1e-4)


def test_unlikelihood_moves_the_gradient_and_is_reported_beside_the_loss(tiny_config: BitNetConfig) -> None:
    def reports(first: float, second: float) -> list[StepReport]:
        torch.manual_seed(5)
        model = BitNetTransformer(tiny_config)
        train = TrainConfig(
            seq_len=8,
            batch_size=8,
            total_steps=2,
            stage1_unlikelihood=first,
            stage2_unlikelihood=second,
            unlikelihood_tokens=4,
        )
        return list(train_steps(model, model, Rows(), Optimizers(model, train.optimizer_config()), train))

    plain, once, twice = (reports(weight, 0)[0] for weight in (0, 1, 2))
    assert plain.loss == once.loss == twice.loss
    assert plain.penalty == 0 < once.penalty
    assert twice.penalty == pytest.approx(2 * once.penalty, rel=1e-6)
    assert len({plain.grad_norm, once.grad_norm, twice.grad_norm}) == 3
    assert [one.penalty > 0 for one in reports(0, 1)] == [False, True], (
        "the second of two updates is the second stage"
    )


def test_unlikelihood_is_refused_where_it_means_nothing() -> None:
    config = TrainConfig(seq_len=8, batch_size=2, total_steps=1)
    with pytest.raises(ConfigError, match=r"train\.stage2_unlikelihood is -1"):
        dataclasses.replace(config, stage2_unlikelihood=-1.0)
    with pytest.raises(ConfigError, match=r"train\.unlikelihood_tokens is 0"):
        dataclasses.replace(config, unlikelihood_tokens=0)
    with pytest.raises(
        ConfigError, match=r"train\.stage1_unlikelihood is 1\.0; it goes with next_token only"
    ):
        dataclasses.replace(config, stage1_unlikelihood=1.0, objective="preference")


def test_a_preference_needs_whole_pairs() -> None:
    config = TrainConfig(seq_len=8, batch_size=3, total_steps=1)
    with pytest.raises(ConfigError, match=r"train\.batch_size is 3; a preference reads rows in pairs"):
        dataclasses.replace(config, objective="preference")
