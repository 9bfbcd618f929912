"""The teacher against the known optimum."""

from __future__ import annotations

import numpy as np
import pytest

from bitnet.experiments.tictactoe.explorer import Choices
from bitnet.experiments.tictactoe.game_tree import game_tree
from bitnet.experiments.tictactoe.scores import legal_rate, play_out
from bitnet.experiments.tictactoe.teacher import taught, teacher_move


@pytest.fixture(scope="module")
def teacher() -> Choices:
    return Choices(taught(), [np.zeros(len(depth.moves), dtype=bool) for depth in game_tree()])


def test_teacher_reaches_the_known_optimum_and_never_loses(teacher: Choices) -> None:
    """A player who never loses beats a random one in at most 99.48% of games as X and 91.64% as O."""
    as_x, as_o = play_out(teacher, 0), play_out(teacher, 1)
    assert as_x["losses_as_x"] == as_o["losses_as_o"] == 0
    assert as_x["expected_wins_as_x"] == pytest.approx(191 / 192)
    assert as_o["expected_wins_as_o"] == pytest.approx(0.91640211)
    assert legal_rate(teacher)["legal_rate"] == 1


def test_teacher_takes_a_win_at_once_and_blocks() -> None:
    assert teacher_move(0b000_000_011, 0b000_011_000) == 2
    assert teacher_move(0b000_010_001, 0b000_000_000 | 1 << 8 | 1 << 2) == 5  # O threatens 2 5 8
