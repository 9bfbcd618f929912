"""Every finished game as text, with the chance that it is played, and which games are held out.

A tenth of the games that no teacher plays is held out. The teacher's own games all stay in: a line of its
tree that is missing is a move that nobody could have learned.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from bitnet.data.generated import Example, ExampleTable, held_out
from bitnet.experiments.tictactoe.game_tree import BETWEEN, OPEN, RESULTS, game_tree, line_text
from bitnet.experiments.tictactoe.teacher import taught
from bitnet.text.characters import CharacterTokenizer

ALPHABET = "012345678_ |XO:\nResultwindra"


@dataclass(frozen=True)
class Games:
    """All 255,168 finished games: texts; the chance of each when both sides are random, when X is the teacher
    and O random, when O is the teacher and X random, each float64 (N,); and which games are held out, bool
    (N,).
    """

    texts: list[Example]
    both_random: NDArray[np.float64]
    x_teaches: NDArray[np.float64]
    o_teaches: NDArray[np.float64]
    kept_back: NDArray[np.bool_]


@cache
def all_games() -> Games:
    """Every finished game as text, with its chances and the split."""
    texts: list[Example] = []
    parts = []
    random_moves = np.ones((2, 1))  # chance of a random player's moves so far, by side
    taught_moves = np.ones((2, 1))  # 1 where a side has moved like the teacher so far
    tree = game_tree()
    for number, here in enumerate(tree[1:]):
        side = number % 2
        random_moves, taught_moves = random_moves[:, here.parent], taught_moves[:, here.parent]
        random_moves[side] /= 9 - number
        taught_moves[side] *= taught()[number][here.parent] == here.moves[:, -1]
        over = here.outcome != OPEN
        parts.append(np.concatenate([random_moves[:, over], taught_moves[:, over]]))
        texts += [
            Example(line_text(()), line_text(moves).removeprefix(line_text(())) + BETWEEN + RESULTS[outcome])
            for moves, outcome in zip(here.moves[over].tolist(), here.outcome[over].tolist(), strict=True)
        ]
    random_x, random_o, taught_x, taught_o = np.concatenate(parts, axis=1)
    by_chance = np.array([held_out(text.answer) for text in texts])
    return Games(
        texts,
        random_x * random_o,
        taught_x * random_o,
        random_x * taught_o,
        by_chance & (taught_x + taught_o == 0),
    )


@cache
def all_rows(vocab_size: int) -> ExampleTable:
    """All finished games as token ids; every configuration draws from the same rows."""
    return ExampleTable.of(all_games().texts, CharacterTokenizer(ALPHABET, vocab_size))
