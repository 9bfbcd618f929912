"""The split of the games, how they are drawn, and the settings."""

from __future__ import annotations

import numpy as np
import pytest

from bitnet.errors import ConfigError
from bitnet.experiments.tictactoe.games import all_games
from bitnet.experiments.tictactoe.task import QUICK, REFERENCE, TicTacToeData, TicTacToeTask


@pytest.mark.slow
def test_held_out_games_are_never_drawn_and_none_is_the_teachers() -> None:
    task, games = TicTacToeTask(QUICK), all_games()
    assert 0.09 < games.kept_back.mean() < 0.11
    assert not (games.kept_back & ((games.x_teaches > 0) | (games.o_teaches > 0))).any()
    assert not task.weights[games.kept_back].any()
    held = {text.prompt + text.answer for text in task.evaluation_cases()}
    drawn = [task.tokenizer.decode(row) for row in task.source.table.tokens.tolist()]
    assert len(drawn) + len(held) == 255_168
    assert held.isdisjoint(drawn)


@pytest.mark.slow
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
