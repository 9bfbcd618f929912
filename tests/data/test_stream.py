"""Which rows an update reads, and how examples are laid in rows."""

from __future__ import annotations

import numpy as np
import pytest

from bitnet.data.stream import row_numbers


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_processes_share_the_rows_of_an_update(world: int, accumulation: int) -> None:
    size = 16 // world // accumulation
    parts = [
        row_numbers(5, micro, batch_size=size, accumulation=accumulation, rank=rank, world_size=world)
        for micro in range(accumulation)
        for rank in range(world)
    ]
    assert np.concatenate(parts).tolist() == list(range(64, 80))
