"""A hundred committed losses: any change to the mathematics of training shows here, wanted or not.

Float path, fp32, one thread, AdamW. After a wanted change:  python tests/test_golden.py --write
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch

from bitnet.experiments.arithmetic import REFERENCE, ArithmeticTask
from bitnet.nn.transformer import BitNetTransformer
from bitnet.optim.optimizer import Optimizers
from bitnet.train.loop import train_steps
from bitnet.train.start import seed_everything

GOLDEN = Path(__file__).parent / "golden" / "arithmetic_losses.json"
STEPS = 100


def losses() -> list[float]:
    """Losses of 100 updates of the reference recipe on a tiny model."""
    model_config = dataclasses.replace(REFERENCE.model, hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=1, ffn_hidden_size=64)
    train = dataclasses.replace(REFERENCE.train, batch_size=16, seq_len=32).with_total_steps(STEPS)
    config = dataclasses.replace(REFERENCE, model=model_config, train=train, data=dataclasses.replace(REFERENCE.data, max_operand=20))
    seed_everything(train.seed)
    model = BitNetTransformer(model_config)
    optimizers = Optimizers(model, train.optimizer_config())
    return [report.loss for report in train_steps(model, model, ArithmeticTask(config).source, optimizers, train)]


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
        GOLDEN.write_text(json.dumps({"torch": torch.__version__, "losses": [round(loss, 7) for loss in curve]}, indent=1) + "\n")
    print(f"{curve[0]:.4f} -> {curve[-1]:.4f}", "written" if "--write" in sys.argv else "not written; add --write")
