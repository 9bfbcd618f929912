"""The five documented shapes: exact sizes and a sane start."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from bitnet.experiments.shapes import SHAPES
from bitnet.nn.transformer import BitNetTransformer

EXACT = {
    "arithmetic": 3_156_224,
    "tictactoe": 10_634_112,
    "tinystories": 11_408_256,
    "baseline": 95_367_936,
    "bitnut": 132_963_072,
}


@pytest.mark.parametrize("name", EXACT)
def test_parameter_counts_are_exact(name: str) -> None:
    """Counted on the real module, built without memory, and by the formula that is printed at start."""
    with torch.device("meta"):
        model = BitNetTransformer(SHAPES[name])
    assert sum(parameter.numel() for parameter in model.parameters()) == EXACT[name]
    assert SHAPES[name].total_params == EXACT[name]


def test_the_five_shapes_are_declared() -> None:
    assert SHAPES.keys() == EXACT.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", EXACT)
def test_the_loss_before_training_is_that_of_guessing(name: str) -> None:
    """Within 5% of ln(V). Left at PyTorch's own initialisation a tied model begins at a loss above 100."""
    shape = SHAPES[name]
    if shape.vocab_size > 30_000:
        shape = dataclasses.replace(shape, num_layers=2)  # the loss hangs on the width and the vocabulary
    torch.manual_seed(0)
    model = BitNetTransformer(shape)
    ids = torch.randint(0, shape.vocab_size, (2, 33))
    with torch.no_grad():
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    assert float(loss) == pytest.approx(math.log(shape.vocab_size), rel=0.05)
