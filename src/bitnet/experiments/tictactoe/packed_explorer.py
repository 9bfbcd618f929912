"""What explorer.py asks of a model, by the packed engine: every row walks a part of the tree depth first.

The lines of three moves are the roots of some 500 parts. A row of the cache reads a root and then goes down:
a child is read after what its parent left, and what the last child left is taken back. So nothing is copied,
and each call reads the next line of all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np

from bitnet.engine.decoder import PackedDecoder, PackedRows
from bitnet.experiments.tictactoe.game_tree import (
    BETWEEN,
    MARKS,
    OPEN,
    RESULTS,
    X_WINS,
    IntArray,
    game_tree,
    question,
)

ROOT_DEPTH = 3
ROWS = 512  # read together

Line = tuple[int, int]
"""Depth, and index in the depth."""
Answered = Callable[[Line, IntArray, list[int]], None]
"""(line, likeliest tokens after each of its ids, its ids): told about every line that was read."""
Wanted = Callable[[Line], list[int]]
"""Indices of the children that a line is followed to, known when it has been answered."""


class Walk:
    """Reads lines of the tree depth first, some hundred side by side."""

    def __init__(
        self, decoder: PackedDecoder, encode: Callable[[str], list[int]], answered: Answered, wanted: Wanted
    ) -> None:
        self.encode, self.answered, self.wanted = encode, answered, wanted
        longest = len(encode(question(range(8)) + BETWEEN + RESULTS[X_WINS])) + 1
        self.rows: PackedRows = decoder.new_rows(ROWS, longest)
        tree = game_tree()
        self.outcome = [depth.outcome.tolist() for depth in tree]
        self.cell = [[], *(encoded_cells(encode, depth.moves[:, -1].tolist()) for depth in tree[1:])]
        self.before = [0, *(len(encode(question(range(depth)))) for depth in range(9))]
        self.after_move = [encode(f"{BETWEEN}{mark}:") for mark in MARKS]
        self.result = [encode(BETWEEN + text) for text in RESULTS]

    def explore(self) -> None:
        """Read every line that is wanted, from the empty board on."""
        level: list[Line] = [(0, 0)]
        for _ in range(ROOT_DEPTH):
            self._read({row: (line, self._whole(line)) for row, line in enumerate(level)}, at_root=True)
            level = [child for line in level for child in self._children(line)]

        waiting, stacks = iter(level), {row: list[Line]() for row in range(ROWS)}
        while stacks:
            self._next(stacks, waiting)

    def _next(self, stacks: dict[int, list[Line]], waiting: Iterator[Line]) -> None:
        """The next line of every row. A row that is through takes another root; without one it is done."""
        roots, lines = {}, {}
        for row in list(stacks):
            if stacks[row]:
                line = stacks[row].pop()
                lines[row] = (line, self._end(line))
            elif (root := next(waiting, None)) is not None:
                roots[row] = (root, self._whole(root))
            else:
                del stacks[row]
        for texts, at_root in ((roots, True), (lines, False)):
            self._read(texts, at_root=at_root)
        for row, (line, _) in (roots | lines).items():
            stacks[row] += reversed(self._children(line))

    def _read(self, texts: dict[int, tuple[Line, list[int]]], *, at_root: bool) -> None:
        """Read lines after their parents, or whole, and tell what the model answers."""
        if not texts:
            return
        for row, ((depth, _), _) in texts.items():
            self.rows.take_back(row, 0 if at_root else self.before[depth])
        logits = self.rows.read({row: ids for row, (_, ids) in texts.items()}, every=True)
        said = logits.argmax(axis=1)

        end = 0
        for line, ids in texts.values():
            begin, end = end, end + len(ids)
            self.answered(line, said[begin:end], ids)

    def _children(self, line: Line) -> list[Line]:
        depth, index = line
        return (
            [(depth + 1, child) for child in self.wanted(line)] if self.outcome[depth][index] == OPEN else []
        )

    def _whole(self, line: Line) -> list[int]:
        return self.encode(question(game_tree()[line[0]].moves[line[1]].tolist()))

    def _end(self, line: Line) -> list[int]:
        """The last move and what follows it: the next mover, or the result but for its last token."""
        depth, index = line
        outcome = self.outcome[depth][index]
        tail = self.after_move[depth % 2] if outcome == OPEN else self.result[outcome][:-1]
        return [self.cell[depth][index], *tail]


def encoded_cells(encode: Callable[[str], list[int]], cells: list[int]) -> list[int]:
    """The token of each cell."""
    token = [encode(str(cell))[0] for cell in range(9)]
    return [token[cell] for cell in cells]


def first_children() -> list[list[int]]:
    """For each depth, the index of each line's first child in the depth below."""
    tree = game_tree()
    return [
        np.searchsorted(below.parent, np.arange(len(here.outcome))).tolist() for here, below in pairwise(tree)
    ]
