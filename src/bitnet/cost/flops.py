"""Floating-point operations of a run: those of the model, and those of Muon's iteration.

nn/config.py counts the model's for each token. Muon's come once an update and do not depend on the batch, so
they weigh more in small batches: for a matrix with sides n <= m one iteration takes 2 n^2 m for the
Gram matrix, 2 n^3 for its square and 2 n^2 m for the product with the matrix.
"""

from __future__ import annotations

from bitnet.cost.memory import ternary_shapes
from bitnet.nn.config import BitNetConfig
from bitnet.optim.muon import ITERATIONS
from bitnet.optim.optimizer import OptimizerKind


def optimizer_flops(model: BitNetConfig, kind: OptimizerKind) -> float:
    """Operations of one update beside forward and backward. AdamW's dozen for each parameter are not counted.

    Muon's are those of its published iteration. In float32, on CPUs, square matrices take about a fifth fewer
    and long ones half (optim/muon.py).
    """
    if kind == "adamw":
        return 0.0
    total = 0.0
    for (out, width), count in ternary_shapes(model).items():
        small, large = sorted((out, width))
        total += count * ITERATIONS * (4.0 * small**2 * large + 2.0 * small**3)
    return total
