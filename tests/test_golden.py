"""A hundred committed losses: any change to the mathematics of training shows here, wanted or not.

Float path, fp32, one thread, AdamW. After a wanted change:  python tests/test_golden.py --write

Ternary training magnifies rounding: a weight next to its threshold flips, or does not. The settings below
were chosen among others for how little that shows: weights changed by one part in ten million move the curve
by 1e-5, where the plain recipe (rate 0.0015, 16 rows) moves it by 6e-4 and would pin one processor instead of
the mathematics.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from bitnet.experiments.arithmetic import ArithmeticData, ArithmeticTask
from bitnet.nn.config import BitNetConfig
from bitnet.nn.transformer import BitNetTransformer
from bitnet.optim.optimizer import Optimizers
from bitnet.train.config import RunConfig, TrainConfig
from bitnet.train.loop import train_steps
from bitnet.train.start import seed_everything

GOLDEN = Path(__file__).parent / "golden" / "arithmetic_losses.json"
STEPS = 100


def losses() -> list[float]:
    """Losses of 100 updates of a tiny model. Spelled out here, so that tuning a recipe does not move the
    curve.
    """
    config = RunConfig(
        model=BitNetConfig(
            vocab_size=32,
            hidden_size=32,
            num_layers=2,
            num_heads=2,
            num_kv_heads=1,
            ffn_hidden_size=64,
            max_seq_length=32,
        ),
        train=TrainConfig(
            seq_len=32, batch_size=32, total_steps=STEPS, warmup_steps=10, peak_lr=5e-4, stage2_lr=3e-4
        ),
        data=ArithmeticData(max_operand=20),
    )
    train = config.train
    seed_everything(train.seed)
    model = BitNetTransformer(config.model)
    optimizers = Optimizers(model, train.optimizer_config())
    return [
        report.loss for report in train_steps(model, model, ArithmeticTask(config).source, optimizers, train)
    ]


def test_a_hundred_losses_are_as_committed() -> None:
    golden = json.loads(GOLDEN.read_text())["losses"]
    assert len(golden) == STEPS
    assert losses() == pytest.approx(golden, rel=1e-4)


def test_the_golden_curve_is_one_of_learning() -> None:
    """A flat curve would pin nothing."""
    golden = json.loads(GOLDEN.read_text())["losses"]
    assert golden[0] == pytest.approx(3.47, rel=0.05)
    assert sum(golden[-10:]) / 10 < 0.8 * golden[0]


if __name__ == "__main__":
    torch.set_num_threads(1)
    curve = losses()
    if "--write" in sys.argv:
        GOLDEN.write_text(
            json.dumps({"torch": torch.__version__, "losses": [round(loss, 7) for loss in curve]}, indent=1)
            + "\n"
        )
    print(
        f"{curve[0]:.4f} -> {curve[-1]:.4f}",
        "written" if "--write" in sys.argv else "not written; add --write",
    )
