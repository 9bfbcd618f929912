"""The game tree against known counts, and the text of a game."""

from __future__ import annotations

import numpy as np

from bitnet.experiments.tictactoe.game_tree import (
    O_WINS,
    OPEN,
    X_WINS,
    game_tree,
    line_text,
    question,
    winner,
)


def test_tree_has_the_known_numbers_of_lines_and_results() -> None:
    """255,168 games: 131,184 won by X, 77,904 by O, 46,080 drawn (the usual count of tic-tac-toe games)."""
    tree = game_tree()
    outcomes = np.concatenate([depth.outcome for depth in tree])
    assert [int((outcomes == one).sum()) for one in range(4)] == [294_778, 131_184, 77_904, 46_080]
    assert [len(depth.moves) for depth in tree[:6]] == [1, 9, 72, 504, 3024, 15_120]
    assert max(len(question(line)) for line in tree[8].moves[:5].tolist()) == 17 + 8 * 6 + 5


def test_texts_are_those_of_the_plan() -> None:
    assert line_text((4, 0, 8)) == "_ _ _ _ _ _ _ _ _ | X:4 | O:0 | X:8"
    assert question((4, 0, 8)) == "_ _ _ _ _ _ _ _ _ | X:4 | O:0 | X:8 | O:"
    assert winner((0, 3, 1, 4, 2)) == X_WINS
    assert winner((0, 3, 1, 4, 8, 5)) == O_WINS
    assert winner((0, 3)) == OPEN
