"""Tic-tac-toe as a game that `bitnet play` can play."""

from __future__ import annotations

from collections.abc import Sequence

from bitnet.experiments.tictactoe.game_tree import MARKS, O_WINS, OPEN, X_WINS, line_text, question, winner


class TicTacToe:
    """Nine cells; see Game in bitnet.train.experiment for what each method says."""

    name = "tic-tac-toe"
    cells = 9

    def question(self, moves: Sequence[int]) -> str:
        """The board and the moves, up to where the next cell stands."""
        return question(moves)

    def text(self, moves: Sequence[int]) -> str:
        """The board and the moves."""
        return line_text(moves)

    def legal(self, moves: Sequence[int]) -> list[int]:
        """The free cells of an open game."""
        return [cell for cell in range(self.cells) if cell not in moves] if winner(moves) == OPEN else []

    def winner(self, moves: Sequence[int]) -> int | None:
        """Who has three in a row."""
        return {X_WINS: 0, O_WINS: 1}.get(winner(moves))

    def board(self, moves: Sequence[int], words: Sequence[str]) -> str:
        """Three rows of three, with a mark or a word in each cell."""
        shown = list(words)
        for index, cell in enumerate(moves):
            shown[cell] = MARKS[index % 2]
        width = max(len(word) for word in shown)
        rows = ["│".join(f" {word:^{width}} " for word in shown[start : start + 3]) for start in (0, 3, 6)]
        rule = "┼".join(["─" * (width + 2)] * 3)
        return "\n" + f"\n   {rule}\n".join(f"   {row}" for row in rows) + "\n"
