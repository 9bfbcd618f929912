"""Tic-tac-toe: rules and strategy learned from the text of games, and judged on every game there is.

A game is one line: the empty board, the moves, the result.

    _ _ _ _ _ _ _ _ _ | X:4 | O:0 | X:8 | O:2 | X:1 | O:7 | X:3 | O:5 | X:6 | Result: draw

Random play teaches the rules, and `data.play = random` is the plan's data: nothing but that. It cannot teach
strategy, since the likeliest next move of a random player is any legal one. In `mixed` play a side is, for
the whole game, either random or a teacher, who among the moves that never lose takes the one that wins most
often against a random opponent (avoiding losses alone would give away most wins). No mark says who is
playing. None is needed: whoever has moved like the teacher so far probably is the teacher, so the likeliest
next move, which greedy decoding takes, is the teacher's for as long as the model follows it, and lines in
which both sides blunder still teach what is legal everywhere.

Nothing is sampled in the final judging: all 294,778 legal unfinished lines are put to the model
(explorer.py), and the whole tree of replies is played out (scores.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bitnet.data.generated import Example, ExampleTable, LossOn
from bitnet.data.stream import Batch
from bitnet.errors import ConfigError
from bitnet.evaluate.answers import shares
from bitnet.experiments.generated_task import GeneratedTask
from bitnet.experiments.recipes import PLAN, QUICK_CHARACTERS
from bitnet.experiments.shapes import TICTACTOE
from bitnet.experiments.tictactoe.explorer import every_choice, own_choices, sampled_choices
from bitnet.experiments.tictactoe.game import TicTacToe
from bitnet.experiments.tictactoe.game_tree import BETWEEN, question
from bitnet.experiments.tictactoe.games import ALPHABET, all_games, all_rows
from bitnet.experiments.tictactoe.scores import legal_rate, play_out, result_rate
from bitnet.generate.decoder import Decoder
from bitnet.nn.config import BitNetConfig
from bitnet.train.config import RunConfig
from bitnet.train.data_config import DataConfig
from bitnet.train.experiment import Criterion, Experiment, Variant

OPENINGS = ((), (4,), (0, 4), (4, 0, 8), (4, 0, 8, 2, 1))
SHOWN = 1000  # held-out games that are used, of some 25,000


@dataclass(frozen=True, kw_only=True)
class TicTacToeData(DataConfig):
    """How the games are played that the model reads."""

    dataset: str = "tictactoe"
    play: Literal["random", "mixed"] = "mixed"
    loss_on: LossOn = "all"
    teacher_as_x: float = 0.25
    """Share of games in which X is the teacher and O is random (mixed play only)."""
    teacher_as_o: float = 0.35
    """Share of games in which O is the teacher and X is random; its tree is larger. The rest is random on
    both sides."""

    def __post_init__(self) -> None:
        for name in ("teacher_as_x", "teacher_as_o"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"data.{name} is {getattr(self, name)}; it must be between 0 and 1")
        if self.teacher_as_x + self.teacher_as_o > 1:
            raise ConfigError(
                f"data.teacher_as_x {self.teacher_as_x} and data.teacher_as_o {self.teacher_as_o} exceed 1 "
                "together"
            )


class TicTacToeTask(GeneratedTask[Example]):
    """The games of one configuration, split, with their judge."""

    alphabet = ALPHABET
    most_cases = SHOWN
    prompts = tuple(question(moves) for moves in OPENINGS)

    def __init__(self, config: RunConfig) -> None:
        assert isinstance(config.data, TicTacToeData)
        super().__init__(config, layout="single", loss_on=config.data.loss_on)
        self.data = config.data

    @cached_property
    def weights(self) -> NDArray[np.float64]:
        """How often each game is drawn for training; 0 for those held out. float64 (255168,)."""
        games, data = all_games(), self.data
        x, o = (data.teacher_as_x, data.teacher_as_o) if data.play == "mixed" else (0.0, 0.0)
        chance = (1 - x - o) * games.both_random + x * games.x_teaches + o * games.o_teaches
        return np.where(games.kept_back, 0.0, chance)

    def training_examples(self) -> Iterator[Example]:
        """The games that are ever drawn."""
        return (all_games().texts[index] for index in np.flatnonzero(self.weights))

    def table(self) -> ExampleTable:
        """The same games with their weights, taken from the table of all games, which is encoded once."""
        every, drawn = all_rows(self.config.model.vocab_size), np.flatnonzero(self.weights)
        return ExampleTable(
            every.tokens[drawn], every.lengths[drawn], every.answer_starts[drawn], self.weights[drawn]
        )

    def evaluation_cases(self) -> Iterator[Example]:
        """Games that are never trained on."""
        games = all_games()
        return (games.texts[index] for index in np.flatnonzero(games.kept_back))

    def example_of(self, case: Example) -> Example:
        """A game up to its last move, and what comes then: the result line."""
        moves, between, result = (case.prompt + case.answer).rpartition(f"{BETWEEN}Result")
        return Example(moves, between + result)

    def frozen_evaluation(self) -> list[Batch]:
        """Whole held-out games, scored as in training."""
        games = self.held_out_cases[: self.config.train.eval_cases]
        return [ExampleTable.of(games, self.tokenizer).batch(self.loss_on)]

    def judge(self, model: Decoder, limit: int | None = None) -> dict[str, float]:
        """Legal moves, result lines, and both trees of replies: all of them, or rates on `limit` cases with
        both trees.
        """
        if limit is None:
            choices = every_choice(model, self.tokenizer)
            rates = {**legal_rate(choices), **result_rate(choices)}
            sides = [choices, choices]
        else:
            games = self.held_out_cases[:limit]
            rates = {
                **legal_rate(sampled_choices(model, self.tokenizer, limit)),
                **shares({"result_rate": self.are_right(games, self.answers(model, games))}),
            }
            sides = [own_choices(model, self.tokenizer, side) for side in (0, 1)]
        for side, choices in enumerate(sides):
            rates |= play_out(choices, side)
        return rates


def training_lines(config: RunConfig, count: int) -> Iterator[str]:
    """`count` games as text, one a line, drawn as in training."""
    task = TicTacToeTask(config)
    weights = task.weights
    drawn = np.random.default_rng(config.train.seed).choice(
        len(weights), size=count, p=weights / weights.sum()
    )
    yield from (all_games().texts[index].prompt + all_games().texts[index].answer for index in drawn.tolist())


SEQ_LEN = 88  # the longest game, nine moves and a win, has 89 characters
QUICK_MODEL = BitNetConfig(
    vocab_size=32,
    hidden_size=96,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    ffn_hidden_size=288,
    max_seq_length=96,
)
REFERENCE = RunConfig(
    model=TICTACTOE,
    train=dataclasses.replace(PLAN, seq_len=SEQ_LEN, batch_size=64, total_steps=15_000, eval_every=500),
    data=TicTacToeData(play="random"),
)
QUICK = RunConfig(
    model=QUICK_MODEL,
    train=dataclasses.replace(
        QUICK_CHARACTERS, seq_len=SEQ_LEN, batch_size=128, total_steps=1_100, checkpoint_every=250
    ),
    data=TicTacToeData(),
)
BEST = RunConfig(
    model=TICTACTOE,
    train=dataclasses.replace(
        QUICK.train,
        total_steps=640,
        log_every=10,
        eval_every=80,
        sample_every=160,
        probe_every=80,
        checkpoint_every=80,
    ),
    data=TicTacToeData(),
)
NEVER_LOSES = (Criterion("losses_as_x", at_most=0), Criterion("losses_as_o", at_most=0))

experiment = Experiment(
    name="tictactoe",
    label="12M",
    about="rules and strategy of a game, proven over every line of it",
    variants={
        "quick": Variant(
            QUICK,
            (Criterion("legal_rate", at_least=0.99), Criterion("losses_as_x", at_most=0)),
            "minutes on two CPU cores: a small model",
        ),
        "reference": Variant(
            REFERENCE,
            (Criterion("legal_rate", at_least=0.99), Criterion("result_rate", at_least=0.99)),
            "the plan's: random play",
        ),
        "best": Variant(
            BEST,
            (
                Criterion("legal_rate", at_least=1.0),
                *NEVER_LOSES,
                Criterion("expected_wins_as_x", at_least=0.99),
                Criterion("expected_wins_as_o", at_least=0.91),
            ),
            "never loses: same model, games with a perfect teacher, Muon",
        ),
    },
    open=TicTacToeTask,
    game=TicTacToe(),
    training_text=training_lines,
)
