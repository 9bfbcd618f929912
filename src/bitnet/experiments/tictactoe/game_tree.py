"""Every line of tic-tac-toe, and how a game is written as text.

    _ _ _ _ _ _ _ _ _ | X:4 | O:0 | X:8 | ... | Result: X wins

A *line* is a sequence of moves. The tree holds all of them by depth: 549,946 lines, of which 294,778 are
unfinished and 255,168 finished.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

BOARD = "_ _ _ _ _ _ _ _ _"
BETWEEN = " | "
MARKS = "XO"
OPEN, X_WINS, O_WINS, DRAW = range(4)
RESULTS = ("", "Result: X wins\n", "Result: O wins\n", "Result: draw\n")
ROWS_OF_THREE = ((0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 3, 6), (1, 4, 7), (2, 5, 8), (0, 4, 8), (2, 4, 6))
FULL = 0b111_111_111

IntArray = NDArray[np.int64]


@cache
def wins() -> NDArray[np.bool_]:
    """Whether a set of cells, as nine bits, holds three in a row. bool (512,)."""
    rows = [sum(1 << cell for cell in row) for row in ROWS_OF_THREE]
    return np.array([any(cells & row == row for row in rows) for cells in range(512)])


@dataclass(frozen=True)
class Depth:
    """All lines of `depth` moves, children of one parent together and in the order of the parents.

    moves: int8 (N, depth); crosses, noughts: cells as bits, int64 (N,); outcome: int8 (N,); parent: index in
    the depth above.
    """

    moves: NDArray[np.int8]
    crosses: IntArray
    noughts: IntArray
    outcome: NDArray[np.int8]
    parent: IntArray

    @property
    def taken(self) -> IntArray:
        """Cells in use, as bits."""
        return self.crosses | self.noughts


def outcome_of(crosses: IntArray, noughts: IntArray) -> NDArray[np.int8]:
    """OPEN, X_WINS, O_WINS or DRAW for boards given as bits."""
    full = np.where((crosses | noughts) == FULL, DRAW, OPEN)
    return np.where(wins()[crosses], X_WINS, np.where(wins()[noughts], O_WINS, full)).astype(np.int8)


@cache
def game_tree() -> tuple[Depth, ...]:
    """Every legal line, by number of moves from 0 to 9."""
    nothing = np.zeros(1, dtype=np.int64)
    depths = [Depth(np.zeros((1, 0), np.int8), nothing, nothing, np.zeros(1, np.int8), nothing)]
    for depth in range(9):
        above = depths[-1]
        free = (above.taken[:, None] >> np.arange(9)) & 1 == 0
        parent, cell = np.nonzero(free & (above.outcome == OPEN)[:, None])
        moves = np.concatenate([above.moves[parent], cell[:, None].astype(np.int8)], axis=1)
        crosses, noughts = above.crosses[parent], above.noughts[parent]
        if depth % 2 == 0:
            crosses = crosses | (1 << cell)
        else:
            noughts = noughts | (1 << cell)
        depths.append(Depth(moves, crosses, noughts, outcome_of(crosses, noughts), parent))
    return tuple(depths)


def line_text(moves: Sequence[int]) -> str:
    """The board and the moves, without what follows."""
    return BETWEEN.join([BOARD, *(f"{MARKS[index % 2]}:{cell}" for index, cell in enumerate(moves))])


def question(moves: Sequence[int]) -> str:
    """The text after which the next mover's cell comes."""
    return f"{line_text(moves)}{BETWEEN}{MARKS[len(moves) % 2]}:"


def winner(moves: Sequence[int]) -> int:
    """OPEN, X_WINS, O_WINS or DRAW after these moves."""
    crosses, noughts = (np.array([sum(1 << cell for cell in moves[side::2])]) for side in (0, 1))
    return int(outcome_of(crosses, noughts)[0])
