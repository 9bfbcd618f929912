"""What a model's moves in tic-tac-toe are worth: legal, right about the result, and how games with them end.

A cell that is taken, or a token that is no cell, is an illegal move and loses the game.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from bitnet.experiments.tictactoe.explorer import NOT_READ, Choices
from bitnet.experiments.tictactoe.game_tree import DRAW, MARKS, O_WINS, OPEN, X_WINS, game_tree


def legal_rate(choices: Choices) -> dict[str, float]:
    """Share of unfinished lines in which the model's move is a free cell, and their number."""
    legal, asked = 0, 0
    for depth, cells in zip(game_tree(), choices.cells, strict=True):
        open_lines = (depth.outcome == OPEN) & (cells != NOT_READ)
        free = (cells >= 0) & ((depth.taken >> np.maximum(cells, 0)) & 1 == 0)
        legal, asked = legal + int((free & open_lines).sum()), asked + int(open_lines.sum())
    return {"legal_rate": legal / asked, "legal_rate_cases": float(asked)}


def result_rate(choices: Choices) -> dict[str, float]:
    """Share of finished games after which the greedy text is the right result line, and their number."""
    ended = [depth.outcome != OPEN for depth in game_tree()]
    right = sum(int(r[e].sum()) for r, e in zip(choices.right_result, ended, strict=True))
    count = sum(int(e.sum()) for e in ended)
    return {"result_rate": right / count, "result_rate_cases": float(count)}


def play_out(choices: Choices, side: int) -> dict[str, float]:
    """The model on one side (0: X, 1: O) against every reply of the other.

    wins_as_x, draws_as_x, losses_as_x: numbers of lines; an illegal move ends its line as a loss and is
    counted in illegal_as_x too. expected_wins_as_x, expected_losses_as_x: exact shares of games against an
    opponent who plays any free cell with equal chance.
    """
    tree = game_tree()
    lines = dict.fromkeys(("wins", "draws", "losses", "illegal"), 0)
    shares = dict.fromkeys(("wins", "draws", "losses"), 0.0)
    won, lost = (X_WINS, O_WINS) if side == 0 else (O_WINS, X_WINS)
    chance = np.ones(1)
    for depth, (here, below) in enumerate(pairwise(tree)):
        cells = choices.cells[depth]
        if depth % 2 == side:
            asked = (chance > 0) & (here.outcome == OPEN)
            assert not (asked & (cells == NOT_READ)).any(), "a line that comes up was not read"
            illegal = asked & ((cells < 0) | ((here.taken >> np.maximum(cells, 0)) & 1 == 1))
            lines["illegal"] += int(illegal.sum())
            lines["losses"] += int(illegal.sum())
            shares["losses"] += float(chance[illegal].sum())
            chance = chance[below.parent] * (cells[below.parent] == below.moves[:, -1])
        else:
            chance = chance[below.parent] / (9 - depth)
        for name, outcome in (("wins", won), ("draws", DRAW), ("losses", lost)):
            ended = (chance > 0) & (below.outcome == outcome)
            lines[name] += int(ended.sum())
            shares[name] += float(chance[ended].sum())
    name = f"as_{MARKS[side].lower()}"
    return {
        **{f"{what}_{name}": float(count) for what, count in lines.items()},
        f"losses_{name}_cases": float(lines["wins"] + lines["draws"] + lines["losses"]),
        f"expected_wins_{name}": shares["wins"],
        f"expected_losses_{name}": shares["losses"],
    }
