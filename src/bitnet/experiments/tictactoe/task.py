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

The split: a tenth of the games that no teacher plays is held out. The teacher's own games all stay in: a line
of its tree that is missing is a move that nobody could have learned. Nothing is sampled in the final judging:
all 294,778 legal unfinished lines are put to the model, and the whole tree of replies is played out
(bitnet.experiments.tictactoe.game_tree).
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bitnet.data.generated import Example, ExampleTable, LossOn, TableRows, held_out
from bitnet.data.stream import Batch
from bitnet.errors import ConfigError
from bitnet.evaluate.answers import Case, answer_all
from bitnet.experiments.shapes import TICTACTOE
from bitnet.experiments.tictactoe.game_tree import (
    BETWEEN,
    DRAW,
    OPEN,
    RESULTS,
    X_WINS,
    every_choice,
    game_tree,
    legal_rate,
    line_text,
    outcome_of,
    own_choices,
    play_out,
    question,
    result_rate,
    sampled_choices,
)
from bitnet.nn.config import BitNetConfig
from bitnet.nn.transformer import BitNetTransformer
from bitnet.text.characters import CharacterTokenizer
from bitnet.train.config import RunConfig, TrainConfig
from bitnet.train.data_config import DataConfig
from bitnet.train.experiment import Criterion, Experiment, Shown, Variant

ALPHABET = "012345678_ |XO:\nResultwindra"
END = "\n"
PREFERRED = (4, 0, 2, 6, 8, 1, 3, 5, 7)  # among equally good moves: the centre, corners, edges
OPENINGS = ((), (4,), (0, 4), (4, 0, 8), (4, 0, 8, 2, 1))
SHOWN = 1000  # held-out games kept for the frozen evaluation set at most


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


def _boards_outcome(crosses: int, noughts: int) -> int:
    return int(outcome_of(np.array([crosses]), np.array([noughts]))[0])


@cache
def worth(crosses: int, noughts: int, side: int) -> tuple[int, float, float]:
    """How good a board is for a side that plays on as the teacher.

    Returns (guaranteed: the result that the other side cannot prevent, 1 win 0 draw -1 loss; share of wins
    against random replies; minus the expected number of moves to the end). Boards are nine bits, side 0 is X.
    """
    outcome = _boards_outcome(crosses, noughts)
    if outcome != OPEN:
        result = 0 if outcome == DRAW else 1 if (outcome == X_WINS) == (side == 0) else -1
        return result, float(result == 1), 0.0
    replies = [worth(*after(crosses, noughts, cell), side) for cell in free_cells(crosses, noughts)]
    if to_move(crosses, noughts) == side:
        _, wins, length = worth(*after(crosses, noughts, teacher_move(crosses, noughts)), side)
        return max(reply[0] for reply in replies), wins, length - 1
    count = len(replies)
    return (
        min(reply[0] for reply in replies),
        sum(r[1] for r in replies) / count,
        sum(r[2] for r in replies) / count - 1,
    )


@cache
def teacher_move(crosses: int, noughts: int) -> int:
    """The teacher's cell: never lose if that can be had, then win most often, then soonest, then
    PREFERRED.
    """
    side = to_move(crosses, noughts)
    worths = {cell: worth(*after(crosses, noughts, cell), side) for cell in free_cells(crosses, noughts)}
    safe = {cell: w for cell, w in worths.items() if w[0] >= 0} or worths
    return max(
        safe, key=lambda cell: (round(safe[cell][1], 12), round(safe[cell][2], 12), -PREFERRED.index(cell))
    )


def to_move(crosses: int, noughts: int) -> int:
    """0 for X, 1 for O."""
    return int(crosses.bit_count() > noughts.bit_count())


def free_cells(crosses: int, noughts: int) -> list[int]:
    """Cells not taken."""
    return [cell for cell in range(9) if not (crosses | noughts) >> cell & 1]


def after(crosses: int, noughts: int, cell: int) -> tuple[int, int]:
    """The board with the mover's mark in a cell."""
    return (crosses, noughts | 1 << cell) if to_move(crosses, noughts) else (crosses | 1 << cell, noughts)


@cache
def taught() -> list[NDArray[np.int8]]:
    """The teacher's cell in every line of the game tree, by depth; -1 where the game is over."""
    tables = []
    for depth in game_tree():
        boards, line_of = np.unique(np.stack([depth.crosses, depth.noughts]), axis=1, return_inverse=True)
        over = outcome_of(*boards) != OPEN
        cells = [
            -1 if done else teacher_move(int(x), int(o)) for x, o, done in zip(*boards, over, strict=True)
        ]
        tables.append(np.array(cells, dtype=np.int8)[line_of.ravel()])
    return tables


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


class TicTacToeTask:
    """The games of one configuration, split, with their judge."""

    end_mark = END

    def __init__(self, config: RunConfig) -> None:
        assert isinstance(config.data, TicTacToeData)
        self.config, self.data = config, config.data
        self.tokenizer = CharacterTokenizer(ALPHABET, config.model.vocab_size)
        self.prompts = [question(moves) for moves in OPENINGS]

    @cached_property
    def weights(self) -> NDArray[np.float64]:
        """How often each game is drawn for training; 0 for those held out. float64 (255168,)."""
        games, data = all_games(), self.data
        x, o = (data.teacher_as_x, data.teacher_as_o) if data.play == "mixed" else (0.0, 0.0)
        chance = (1 - x - o) * games.both_random + x * games.x_teaches + o * games.o_teaches
        return np.where(games.kept_back, 0.0, chance)

    @cached_property
    def source(self) -> TableRows:
        """Training rows, one game each."""
        train, data, every = self.config.train, self.data, all_rows(self.config.model.vocab_size)
        drawn = np.flatnonzero(self.weights)
        table = ExampleTable(
            every.tokens[drawn], every.lengths[drawn], every.answer_starts[drawn], self.weights[drawn]
        )
        return TableRows(
            table,
            seed=train.seed,
            seq_len=train.seq_len,
            layout="single",
            loss_on=data.loss_on,
            name=data.dataset,
        )

    @cached_property
    def held_out_games(self) -> list[Example]:
        """Games that are never trained on, in an order that mixes lengths."""
        games = all_games()
        texts = [games.texts[index] for index in np.flatnonzero(games.kept_back)]
        random.Random("evaluation order").shuffle(texts)
        return texts

    @cached_property
    def result_cases(self) -> list[Case]:
        """Held-out games up to the last move; the result line is asked for."""
        cut = [
            (text.prompt + text.answer).rpartition(f"{BETWEEN}Result") for text in self.held_out_games[:SHOWN]
        ]
        return [Case("result", head, middle + tail) for head, middle, tail in cut]

    def frozen_evaluation(self) -> list[Batch]:
        """Held-out games, scored as in training."""
        games = self.held_out_games[: min(self.config.train.eval_cases, SHOWN)]
        return [ExampleTable.of(games, self.tokenizer).batch(self.data.loss_on)]

    def judge(self, model: BitNetTransformer, limit: int | None = None) -> dict[str, float]:
        """Legal moves, result lines, and both trees of replies: all of them, or rates on `limit` cases with
        both trees.
        """
        if limit is None:
            choices = every_choice(model, self.tokenizer)
            rates = {**legal_rate(choices), **result_rate(choices)}
            sides = [choices, choices]
        else:
            rates = {
                **legal_rate(sampled_choices(model, self.tokenizer, limit)),
                **self._results(model, limit),
            }
            sides = [own_choices(model, self.tokenizer, side) for side in (0, 1)]
        for side, choices in enumerate(sides):
            rates |= play_out(choices, side)
        return rates

    def _results(self, model: BitNetTransformer, limit: int) -> dict[str, float]:
        cases = self.result_cases[:limit]
        answers = answer_all(model, self.tokenizer, cases)
        right = [answer == case.answer for case, answer in zip(cases, answers, strict=True)]
        return {"result_rate": sum(right) / len(right), "result_rate_cases": float(len(right))}

    def show(self, model: BitNetTransformer, count: int) -> list[Shown]:
        """Held-out games up to the last move, with the model's result."""
        cases = self.result_cases[:count]
        answers = answer_all(model, self.tokenizer, cases)
        return [
            Shown(case.prompt, answer.rstrip(), case.answer.rstrip())
            for case, answer in zip(cases, answers, strict=True)
        ]


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
    train=TrainConfig(
        seq_len=SEQ_LEN,
        batch_size=64,
        total_steps=15_000,
        warmup_steps=250,
        eval_every=500,
        entropy_floor=None,
        repetition_limit=None,
    ),
    data=TicTacToeData(play="random"),
)
QUICK = RunConfig(
    model=QUICK_MODEL,
    train=TrainConfig(
        seq_len=SEQ_LEN,
        batch_size=128,
        total_steps=1_100,
        warmup_steps=20,
        optimizer="muon",
        schedule="warm_down",
        peak_lr=0.003,
        final_lr=0.0,
        stage1_wd=0.0,
        muon_lr=0.02,
        log_every=20,
        eval_every=100,
        sample_every=300,
        probe_every=100,
        checkpoint_every=250,
        entropy_floor=None,
        repetition_limit=None,
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
    training_text=training_lines,
)
