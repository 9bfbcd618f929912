"""The chances of the games that the model reads."""

from __future__ import annotations

import random

import numpy as np
import pytest

from bitnet.experiments.tictactoe.game_tree import OPEN, winner
from bitnet.experiments.tictactoe.games import all_games


@pytest.mark.slow
def test_chances_are_those_of_players_who_move_at_random() -> None:
    """The share of five-move games among random ones, by playing some."""
    games = all_games()
    assert [games.both_random.sum(), games.x_teaches.sum(), games.o_teaches.sum()] == pytest.approx([1, 1, 1])
    generator = random.Random(1)
    short = 0
    for _ in range(4000):
        moves: list[int] = []
        while winner(moves) == OPEN:
            moves.append(generator.choice([cell for cell in range(9) if cell not in moves]))
        short += len(moves) == 5
    five = np.array([text.answer.count(":") == 6 for text in games.texts])  # five moves and the result
    assert games.both_random[five].sum() == pytest.approx(short / 4000, abs=0.02)
