"""The teacher of tic-tac-toe: among the moves that never lose it takes the one that wins most often against
a random opponent. Boards are nine bits for each side, and side 0 is X.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from bitnet.experiments.tictactoe.game_tree import DRAW, OPEN, X_WINS, game_tree, outcome_of

PREFERRED = (4, 0, 2, 6, 8, 1, 3, 5, 7)  # among equally good moves: the centre, corners, edges


def _boards_outcome(crosses: int, noughts: int) -> int:
    return int(outcome_of(np.array([crosses]), np.array([noughts]))[0])


@cache
def worth(crosses: int, noughts: int, side: int) -> tuple[int, float, float]:
    """How good a board is for a side that plays on as the teacher.

    Returns (guaranteed: the result that the other side cannot prevent, 1 win 0 draw -1 loss; share of wins
    against random replies; minus the expected number of moves to the end). Boards are nine bits, side 0 is X.
    """
    outcome = _boards_outcome(crosses, noughts)
    if outcome != OPEN:
        result = 0 if outcome == DRAW else 1 if (outcome == X_WINS) == (side == 0) else -1
        return result, float(result == 1), 0.0
    replies = [worth(*after(crosses, noughts, cell), side) for cell in free_cells(crosses, noughts)]
    if to_move(crosses, noughts) == side:
        _, wins, length = worth(*after(crosses, noughts, teacher_move(crosses, noughts)), side)
        return max(reply[0] for reply in replies), wins, length - 1
    count = len(replies)
    return (
        min(reply[0] for reply in replies),
        sum(r[1] for r in replies) / count,
        sum(r[2] for r in replies) / count - 1,
    )


@cache
def teacher_move(crosses: int, noughts: int) -> int:
    """The teacher's cell: never lose if that can be had, then win most often, then soonest, then
    PREFERRED.
    """
    side = to_move(crosses, noughts)
    worths = {cell: worth(*after(crosses, noughts, cell), side) for cell in free_cells(crosses, noughts)}
    safe = {cell: w for cell, w in worths.items() if w[0] >= 0} or worths
    return max(
        safe, key=lambda cell: (round(safe[cell][1], 12), round(safe[cell][2], 12), -PREFERRED.index(cell))
    )


def to_move(crosses: int, noughts: int) -> int:
    """0 for X, 1 for O."""
    return int(crosses.bit_count() > noughts.bit_count())


def free_cells(crosses: int, noughts: int) -> list[int]:
    """Cells not taken."""
    return [cell for cell in range(9) if not (crosses | noughts) >> cell & 1]


def after(crosses: int, noughts: int, cell: int) -> tuple[int, int]:
    """The board with the mover's mark in a cell."""
    return (crosses, noughts | 1 << cell) if to_move(crosses, noughts) else (crosses | 1 << cell, noughts)


@cache
def taught() -> list[NDArray[np.int8]]:
    """The teacher's cell in every line of the game tree, by depth; -1 where the game is over."""
    tables = []
    for depth in game_tree():
        boards, line_of = np.unique(np.stack([depth.crosses, depth.noughts]), axis=1, return_inverse=True)
        over = outcome_of(*boards) != OPEN
        cells = [
            -1 if done else teacher_move(int(x), int(o)) for x, o, done in zip(*boards, over, strict=True)
        ]
        tables.append(np.array(cells, dtype=np.int8)[line_of.ravel()])
    return tables
