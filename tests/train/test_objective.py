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
from bitnet.train.loop import train_steps
from bitnet.train.objective import NextToken, Preference, margins, row_log_probabilities, summed_loss


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
    by_hand = [sum(float(log_p[row, t, batch.targets[row, t]]) for t in range(6) if batch.loss_mask[row, t]) for row in range(4)]
    assert row_log_probabilities(logits, batch).tolist() == pytest.approx(by_hand, rel=1e-5)
    assert float(summed_loss(logits, batch)) == pytest.approx(-sum(by_hand), rel=1e-5)
    assert NextToken().cases([batch]) == 14


def test_the_preference_loss_is_that_of_the_paper() -> None:
    """Equation 7 of arXiv:2305.18290, pair by pair."""
    logits, batch = two_pairs()
    assert batch.reference is not None
    gained = (row_log_probabilities(logits, batch) - batch.reference).tolist()
    pairs = [gained[0] - gained[1], gained[2] - gained[3]]
    by_hand = sum(math.log(1 + math.exp(-0.3 * margin)) for margin in pairs)
    objective = Preference(beta=0.3)
    assert margins(logits, batch).tolist() == pytest.approx(pairs, rel=1e-5)
    assert float(objective.summed(logits, batch)) == pytest.approx(by_hand, rel=1e-5)
    assert objective.cases([batch, batch]) == 4


def test_it_is_ln_2_where_nothing_has_changed_and_falls_towards_the_chosen() -> None:
    logits, batch = two_pairs()
    logits.requires_grad_(True)
    batch = batch._replace(reference=row_log_probabilities(logits, batch).detach())
    loss = Preference(beta=0.1).summed(logits, batch)
    assert float(loss.detach()) / 2 == pytest.approx(math.log(2))
    (gradient,) = torch.autograd.grad(loss, [logits])
    after = row_log_probabilities((logits - gradient).detach(), batch) - batch.reference  # type: ignore[operator]
    assert (after[0::2] > 0).all()
    assert (after[1::2] < 0).all()


class Rows:
    """Rows with 1 to 8 scored tokens."""

    def rows(self, numbers: NDArray[np.int64]) -> Batch:
        return shifted((numbers[:, None] * 7 + np.arange(9) * 3) % 32, np.arange(9) <= 1 + numbers[:, None] % 8)

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


def test_a_preference_needs_whole_pairs() -> None:
    config = TrainConfig(seq_len=8, batch_size=3, total_steps=1)
    with pytest.raises(ConfigError, match=r"train\.batch_size is 3; a preference reads rows in pairs"):
        dataclasses.replace(config, objective="preference")
