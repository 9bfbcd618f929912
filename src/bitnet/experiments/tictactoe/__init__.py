"""Tic-tac-toe: the game, its tree, its judge and the experiment."""

from bitnet.experiments.tictactoe.task import experiment as experiment
