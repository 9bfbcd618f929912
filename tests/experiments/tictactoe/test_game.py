"""Tic-tac-toe as `bitnet play` sees it."""

from __future__ import annotations

from bitnet.experiments.tictactoe.game import TicTacToe

NUMBERS = [str(cell) for cell in range(9)]


def test_the_board_shows_marks_and_free_cells() -> None:
    lines = TicTacToe().board([4, 0], NUMBERS).splitlines()
    assert lines[1] == "    O │ 1 │ 2 "
    assert lines[3] == "    3 │ X │ 5 "


def test_a_game_ends_with_three_in_a_row_or_without_a_free_cell() -> None:
    game = TicTacToe()
    assert game.legal([4, 0]) == [1, 2, 3, 5, 6, 7, 8]
    assert game.winner([4, 0]) is None

    assert game.legal([0, 3, 1, 4, 2]) == []
    assert game.winner([0, 3, 1, 4, 2]) == 0
    assert game.winner([0, 3, 1, 4, 8, 5]) == 1

    drawn = [4, 0, 8, 2, 1, 7, 3, 5, 6]
    assert game.legal(drawn) == []
    assert game.winner(drawn) is None
