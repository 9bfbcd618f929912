"""What an experiment is: variants with settings, a task made from them, and what counts as success.

An experiment's file makes one `Experiment` value called `experiment`. It has no loop and touches no file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from bitnet.data.stream import Batch, RowSource
from bitnet.generate.decoder import Decoder
from bitnet.nn.config import BitNetConfig
from bitnet.text.tokenizer import Tokenizer
from bitnet.train.config import RunConfig
from bitnet.units import parameters_label


@dataclass(frozen=True)
class Criterion:
    """One threshold of success. Exactly one of the bounds is given."""

    metric: str
    at_least: float | None = None
    at_most: float | None = None

    def __post_init__(self) -> None:
        assert (self.at_least is None) != (self.at_most is None), f"{self.metric}: give one bound"

    @property
    def threshold(self) -> float:
        """The bound."""
        bound = self.at_least if self.at_least is not None else self.at_most
        assert bound is not None
        return bound

    def met(self, value: float) -> bool:
        """Whether a measured value satisfies the bound."""
        return value >= self.threshold if self.at_least is not None else value <= self.threshold

    def __str__(self) -> str:
        return f"{self.metric} {'>=' if self.at_least is not None else '<='} {self.threshold:g}"


class Watch(NamedTuple):
    """Who is told while data is made ready."""

    say: Callable[[str], None]
    """Shows one line."""
    progress: Callable[[object], None]
    """Shows how far the work is, in place of what it showed before."""
    bars: bool = False
    """Whether libraries may draw progress bars of their own."""


@dataclass(frozen=True)
class Shown:
    """One case for people: what was asked, what the model said, what is right."""

    prompt: str
    answer: str
    expected: str | None
    """None where any continuation may be right."""


class Task(Protocol):
    """An experiment with its settings applied: data, tokenizer and judge."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Text to ids and back."""
        ...

    @property
    def source(self) -> RowSource:
        """Training rows."""
        ...

    @property
    def prompts(self) -> Sequence[str]:
        """The fixed prompts that samples are drawn for."""
        ...

    @property
    def end_mark(self) -> str | None:
        """One character that ends an answer, if the task has one; samples stop there."""
        ...

    def frozen_evaluation(self) -> Sequence[Batch]:
        """Held-out batches, always the same, that the evaluation loss is measured on."""
        ...

    def judge(self, model: Decoder, limit: int | None = None) -> dict[str, float]:
        """Success metrics on held-out cases, with `..._cases` beside each; at most `limit` cases."""
        ...

    def show(self, model: Decoder, count: int) -> list[Shown]:
        """A few held-out cases with the model's answers."""
        ...


class Game(Protocol):
    """A game for two that a model learned as text, for `bitnet play`. X begins, and sides are 0 for X and 1
    for O.

    A move is a cell, numbered from 0, and its text is that number, one token. A game in progress is the
    sequence of its moves.
    """

    @property
    def name(self) -> str:
        """As in a sentence."""
        ...

    @property
    def cells(self) -> int:
        """How many cells there are."""
        ...

    def question(self, moves: Sequence[int]) -> str:
        """The text after which the next move comes."""
        ...

    def text(self, moves: Sequence[int]) -> str:
        """The text of the moves so far, after which the result comes where the game has ended."""
        ...

    def legal(self, moves: Sequence[int]) -> Sequence[int]:
        """The cells that may be played next; none where the game has ended."""
        ...

    def winner(self, moves: Sequence[int]) -> int | None:
        """The side that has won, if one has."""
        ...

    def board(self, moves: Sequence[int], words: Sequence[str]) -> str:
        """A drawing for people; a free cell shows its word."""
        ...


@dataclass(frozen=True)
class Variant:
    """Settings of one way to run an experiment."""

    config: RunConfig
    criteria: tuple[Criterion, ...]
    about: str


def shape_of(model: BitNetConfig) -> tuple[int, ...]:
    """The figures of a model that the plan names a size by."""
    return (
        model.vocab_size,
        model.hidden_size,
        model.num_layers,
        model.num_heads,
        model.num_kv_heads,
        model.ffn_hidden_size,
    )


@dataclass(frozen=True)
class Experiment:
    """One thing to train."""

    name: str
    about: str
    variants: Mapping[str, Variant]
    open: Callable[[RunConfig], Task]
    label: str | None = None
    """What run ids call the size of the `reference` variant (where there is none: of the first): 5M, 12M,
    95M. None: computed."""
    cpu_variant: str = "quick"
    """Variant when none is named and there is no GPU."""
    gpu_variant: str = "reference"
    run_name: Callable[[RunConfig], str] | None = None
    """Beginning of a new run's id; by default bitnet_SIZE_NAME."""
    starts_from_a_run: bool = False
    """Whether it needs `--from RUN`."""
    ready: Callable[[RunConfig, Watch | None], str] | None = None
    """Makes what is missing of the data before the run starts, and returns the folder of its token shards, or
    "" where it has none."""
    training_text: Callable[[RunConfig, int], Iterator[str]] | None = None
    """So many training examples or documents as text, for `bitnet prepare NAME`."""
    game: Game | None = None
    """What `bitnet play RUN` plays with a model that was trained on it."""
    headline: tuple[str, ...] = ()
    """Metrics that are reported before those of the criteria."""
    file: str | None = None
    """Path of a user's own experiment; None for those of this package."""

    def run_prefix(self, config: RunConfig) -> str:
        """What a new run's id begins with; the time follows."""
        return (
            self.run_name(config) if self.run_name else f"bitnet_{self.size_label(config.model)}_{self.name}"
        )

    def size_label(self, model: BitNetConfig) -> str:
        """The size of what is trained: the given label for the shape that it belongs to, else computed from
        the parameters.
        """
        labelled = self.variants.get(self.gpu_variant) or next(iter(self.variants.values()))
        if self.label is None or shape_of(model) != shape_of(labelled.config.model):
            return parameters_label(model.total_params)
        return self.label

    def default_variant(self, device_type: str) -> str:
        """The variant for a device when the user names none."""
        return self.gpu_variant if device_type == "cuda" else self.cpu_variant
