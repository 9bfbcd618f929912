"""The state of every random generator, through JSON and back."""

from __future__ import annotations

import json
import random

import numpy as np
import torch

from bitnet.run.random_state import random_states, restore_random_states


def draws() -> list[float]:
    """Two of every generator: `random` and NumPy keep every second normal number from the draw before."""
    return [
        value
        for _ in range(2)
        for value in (
            random.random(),
            random.gauss(0, 1),
            float(np.random.rand()),
            float(np.random.standard_normal()),
            float(torch.rand(())),
            float(torch.randn(())),
        )
    ]


def test_every_generator_goes_on_where_it_was() -> None:
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    draws()
    random.gauss(0, 1)  # an odd number of draws: one normal number is waiting
    np.random.standard_normal()

    saved = json.loads(json.dumps(random_states()))
    expected = draws()
    assert draws() != expected
    restore_random_states(saved)
    assert draws() == expected
