"""The teacher, the chances of the games it plays, and the split."""

from __future__ import annotations

import random

import numpy as np
import pytest

from bitnet.errors import ConfigError
from bitnet.experiments.tictactoe.game_tree import OPEN, Choices, game_tree, legal_rate, play_out, winner
from bitnet.experiments.tictactoe.task import (
    QUICK,
    REFERENCE,
    TicTacToeData,
    TicTacToeTask,
    all_games,
    taught,
    teacher_move,
)


@pytest.fixture(scope="module")
def teacher() -> Choices:
    return Choices(taught(), [np.zeros(len(depth.moves), dtype=bool) for depth in game_tree()])


def test_teacher_reaches_the_known_optimum_and_never_loses(teacher: Choices) -> None:
    """A player who never loses beats a random one in at most 99.48% of games as X and 91.64% as O."""
    as_x, as_o = play_out(teacher, 0), play_out(teacher, 1)
    assert as_x["losses_as_x"] == as_o["losses_as_o"] == 0
    assert as_x["expected_wins_as_x"] == pytest.approx(191 / 192)
    assert as_o["expected_wins_as_o"] == pytest.approx(0.91640211)
    assert legal_rate(teacher)["legal_rate"] == 1


def test_teacher_takes_a_win_at_once_and_blocks() -> None:
    assert teacher_move(0b000_000_011, 0b000_011_000) == 2
    assert teacher_move(0b000_010_001, 0b000_000_000 | 1 << 8 | 1 << 2) == 5  # O threatens 2 5 8


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


def test_held_out_games_are_never_drawn_and_none_is_the_teachers() -> None:
    task, games = TicTacToeTask(QUICK), all_games()
    assert 0.09 < games.kept_back.mean() < 0.11
    assert not (games.kept_back & ((games.x_teaches > 0) | (games.o_teaches > 0))).any()
    assert not task.weights[games.kept_back].any()
    held = {text.prompt + text.answer for text in task.held_out_games}
    drawn = [task.tokenizer.decode(row) for row in task.source.table.tokens.tolist()]
    assert len(drawn) + len(held) == 255_168
    assert held.isdisjoint(drawn)


def test_rows_are_drawn_as_the_settings_say() -> None:
    """A quarter of the mixed games has the teacher as X: about that share follows its tree; random play
    hardly ever does.
    """
    of_teacher = all_games().x_teaches > 0
    mixed, plain = (TicTacToeTask(config).weights[of_teacher].sum() for config in (QUICK, REFERENCE))
    assert mixed == pytest.approx(0.25, abs=0.02)
    assert plain < 0.01


def test_floor_of_the_loss_is_what_the_docs_say() -> None:
    """Entropy of a drawn game over its mean number of targets: no model can do better."""
    targets = np.array([len(text.prompt + text.answer) - 1 for text in all_games().texts])
    floors = []
    for config in (REFERENCE, QUICK):
        chance = TicTacToeTask(config).weights / TicTacToeTask(config).weights.sum()
        drawn = chance[chance > 0]
        floors.append(-(drawn * np.log(drawn)).sum() / (chance * targets).sum())
    assert floors == pytest.approx([0.152, 0.120], abs=0.0005)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="teacher_as_x is 2"):
        TicTacToeData(teacher_as_x=2)
    with pytest.raises(ConfigError, match="exceed 1 together"):
        TicTacToeData(teacher_as_x=0.7, teacher_as_o=0.7)
