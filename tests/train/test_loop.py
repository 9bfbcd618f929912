"""One update is the same however its rows are split, also where rows have unequal numbers of scored
tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bitnet.data.stream import Batch, shifted
from bitnet.nn.config import BitNetConfig
from bitnet.nn.transformer import BitNetTransformer
from bitnet.optim.optimizer import Optimizers
from bitnet.train.config import TrainConfig
from bitnet.train.loop import train_steps


class UnevenRows:
    """Row i has 1 + i % 8 scored tokens, so that a mean of means is not the mean."""

    def rows(self, numbers: NDArray[np.int64]) -> Batch:
        tokens = (numbers[:, None] * 7 + np.arange(9) * 3) % 32
        return shifted(tokens, np.arange(9) <= 1 + numbers[:, None] % 8)

    def epochs(self, rows: int) -> float:
        return 1.0

    def fingerprint(self) -> dict[str, Any]:
        return {}


def one_update(
    tiny_config: BitNetConfig, batch_size: int, accumulation: int
) -> tuple[float, float, torch.Tensor]:
    torch.manual_seed(5)
    model = BitNetTransformer(tiny_config)
    train = TrainConfig(
        seq_len=8,
        batch_size=batch_size,
        grad_accumulation_steps=accumulation,
        total_steps=1,
        grad_clip_norm=1e9,
    )
    (report,) = train_steps(model, model, UnevenRows(), Optimizers(model, train.optimizer_config()), train)
    return report.loss, report.grad_norm, model.blocks[0].feedforward.down.weight.detach()  # type: ignore[union-attr]


@pytest.mark.parametrize(("batch_size", "accumulation"), [(4, 2), (2, 4), (1, 8)])
def test_accumulation_averages_over_real_tokens(
    tiny_config: BitNetConfig, batch_size: int, accumulation: int
) -> None:
    whole, split = one_update(tiny_config, 8, 1), one_update(tiny_config, batch_size, accumulation)
    assert split[0] == pytest.approx(whole[0], rel=1e-6)
    assert split[1] == pytest.approx(whole[1], rel=1e-5)
    first, second = UnevenRows().rows(np.arange(4)), UnevenRows().rows(np.arange(4, 8))
    assert first.loss_mask.sum() != second.loss_mask.sum()
