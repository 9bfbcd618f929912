"""What moves are worth, against plain recursion."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from bitnet.experiments.tictactoe.explorer import Choices
from bitnet.experiments.tictactoe.game_tree import DRAW, OPEN, game_tree, winner
from bitnet.experiments.tictactoe.scores import legal_rate, play_out


def policy(choose: str) -> Choices:
    """A player who takes the first or the last free cell in every line."""
    cells = []
    for depth in game_tree():
        free = (depth.taken[:, None] >> np.arange(9)) & 1 == 0
        one = free.argmax(axis=1) if choose == "first" else 8 - free[:, ::-1].argmax(axis=1)
        cells.append(one.astype(np.int8))
    return Choices(cells, [np.zeros(len(c), dtype=bool) for c in cells])


def expected(moves: Sequence[int], side: int, choose: str) -> tuple[float, float, int]:
    """Share of wins and losses, and number of lost lines, by plain recursion."""
    outcome = winner(moves)
    if outcome != OPEN:
        won = outcome != DRAW and outcome - 1 == side
        lost = outcome != DRAW and not won
        return float(won), float(lost), int(lost)
    free = [cell for cell in range(9) if cell not in moves]
    if len(moves) % 2 == side:
        return expected([*moves, free[0] if choose == "first" else free[-1]], side, choose)
    below = [expected([*moves, cell], side, choose) for cell in free]
    return (
        sum(b[0] for b in below) / len(free),
        sum(b[1] for b in below) / len(free),
        sum(b[2] for b in below),
    )


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("choose", ["first", "last"])
def test_playing_out_equals_plain_recursion(side: int, choose: str) -> None:
    played = play_out(policy(choose), side)
    mark = "xo"[side]
    wins, losses, lost_lines = expected([], side, choose)
    assert played[f"expected_wins_as_{mark}"] == pytest.approx(wins)
    assert played[f"expected_losses_as_{mark}"] == pytest.approx(losses)
    assert played[f"losses_as_{mark}"] == lost_lines
    assert played[f"illegal_as_{mark}"] == 0
    assert legal_rate(policy(choose)) == {"legal_rate": 1.0, "legal_rate_cases": 294_778.0}


def test_an_illegal_move_forfeits_the_game() -> None:
    """A player who always wants the cell 4 begins well and is illegal at the second move: one line for each
    reply.
    """
    always = Choices([np.full(len(d.moves), 4, dtype=np.int8) for d in game_tree()], [])
    played = play_out(always, 0)
    assert (played["illegal_as_x"], played["losses_as_x"], played["losses_as_x_cases"]) == (8.0, 8.0, 8.0)
    assert played["expected_losses_as_x"] == pytest.approx(1.0)
