"""What is examined, as values: the task, the settings, and the functions that training itself would call.

`bitnet.diagnose` stands below `bitnet.train` and may not import it, so whoever calls (the command line) hands
over the real objects: the loop, the schedule, the way a model is made and judged. Whatever is broken in them
is broken here too.

Also the two ways to look at training without touching it: `Watched` optimizers, which note what every update
was given, and row sources that show the loop fewer columns, the same rows again, or count what is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bitnet.data.stream import Batch, RowSource
from bitnet.nn.config import BitNetConfig
from bitnet.nn.transformer import BitNetTransformer
from bitnet.optim.optimizer import Optimizers
from bitnet.optim.schedule import Rates
from bitnet.run.layout import RunLayout
from bitnet.text.tokenizer import Tokenizer


class ExaminedTask(Protocol):
    """What is used of an experiment's task."""

    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def source(self) -> RowSource: ...
    @property
    def prompts(self) -> Sequence[str]: ...
    @property
    def end_mark(self) -> str | None: ...
    def frozen_evaluation(self) -> Sequence[Batch]: ...
    def judge(self, model: BitNetTransformer, limit: int | None = None) -> dict[str, float]: ...


class Report(Protocol):
    """What is used of the loop's report on one update."""

    @property
    def step(self) -> int: ...
    @property
    def tokens_seen(self) -> int: ...
    @property
    def loss(self) -> float: ...
    @property
    def penalty(self) -> float: ...
    @property
    def lr(self) -> float: ...
    @property
    def wd(self) -> float: ...
    @property
    def grad_norm(self) -> float: ...
    @property
    def refused(self) -> str | None: ...
    @property
    def batches(self) -> tuple[Batch, ...]: ...


class Threshold(Protocol):
    """One threshold of success."""

    @property
    def metric(self) -> str: ...
    @property
    def threshold(self) -> float: ...
    def met(self, value: float) -> bool: ...


class Trainer(Protocol):
    """The training loop. changes: fields of its settings to replace; num_steps: the same recipe in so many
    updates.
    """

    def __call__(
        self,
        model: BitNetTransformer,
        optimizers: Any,
        source: RowSource,
        *,
        start_step: int = 0,
        num_steps: int | None = None,
        **changes: Any,
    ) -> Iterator[Report]: ...


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """Two short runs of the real trainer in a temporary folder: one in one go, one stopped after `stop`
    updates and resumed.
    """

    whole: RunLayout
    parts: RunLayout
    begun: RunLayout
    """A third one, of one update, that begins with the last weights of `whole`."""
    loaded_step: int
    """The checkpoint of `whole` that `bitnet.load` takes, and its weights."""
    loaded: Mapping[str, Tensor]
    stop: int
    training: Mapping[str, Any]
    """The settings of both."""
    weights: str
    """ternary or full."""
    whole_rows: Sequence[Sequence[int]]
    """Row numbers that each update read, in order."""
    parts_rows: Sequence[Sequence[int]]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One experiment with a fresh model, or one run with its checkpoint."""

    name: str
    config: BitNetConfig
    training: Mapping[str, Any]
    """The section `training` of meta/config.json: what was asked for, in the seeds' keys."""
    data: Mapping[str, Any]
    """The section `data`."""
    task: ExaminedTask
    model: BitNetTransformer
    """The fresh model, or the one of the run's checkpoint."""
    new_model: Callable[[BitNetConfig], BitNetTransformer]
    new_optimizers: Callable[..., Optimizers]
    """Of a model; changes: fields of the settings to replace, here and below."""
    train: Trainer
    rates_at: Callable[..., Rates]
    """Of an update."""
    complete: Callable[[Any, str, int], str]
    """Tokenizer, prompt and number of new tokens to the text that a user of `model` is shown."""
    read_update: Callable[[RowSource, int], Sequence[Batch]]
    """The micro-batches that the loop reads of a source at an update, by the settings."""
    rehearse: Callable[[Path], Rehearsal] | None = None
    criteria: Sequence[Threshold] = ()
    planned_tokens: int | None = None
    """Tokens that the experiment's variant plans."""
    layout: RunLayout | None = None
    step: int = 0
    """Updates behind `model`."""
    step_named: bool = True
    """Whether the user named this checkpoint; else it should be the newest good one."""
    damaged: Sequence[str] = ()
    """What is wrong with checkpoints that had to be passed over."""
    bf16: bool = False
    full: bool = False

    @property
    def fresh(self) -> bool:
        """Whether there is no run, only an experiment."""
        return self.layout is None

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.model.final_norm.weight.device


@dataclass
class Update:
    """What one update was given and did. gradients: as the optimizers got them, after clipping; None: no
    gradient at all.
    """

    report: Report | None = None
    rates: Rates | None = None
    gradients: dict[str, Tensor | None] = field(default_factory=dict)
    before: dict[str, Tensor] = field(default_factory=dict)
    after: dict[str, Tensor] = field(default_factory=dict)


class Watched:
    """The real optimizers with a notebook. Everything that is not `step` goes straight through."""

    def __init__(self, model: nn.Module, inner: Optimizers) -> None:
        self._model, self._inner = model, inner
        self.updates: list[Update] = []

    def step(self, rates: Rates) -> None:
        """Note what comes in, let the real optimizers work, note what came of it."""
        parameters = dict(self._model.named_parameters())
        gradients = {
            name: None if p.grad is None else p.grad.detach().clone() for name, p in parameters.items()
        }
        before = {name: p.detach().clone() for name, p in parameters.items()}
        self._inner.step(rates)
        after = {name: p.detach().clone() for name, p in parameters.items()}
        self.updates.append(Update(None, rates, gradients, before, after))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def watch(
    subject: Subject,
    model: BitNetTransformer,
    source: RowSource,
    count: int,
    *,
    start_step: int = 0,
    **changes: Any,
) -> list[Update]:
    """Let the loop make `count` updates of the model and return what each was given and did."""
    watched = Watched(model, subject.new_optimizers(model))
    reports = []
    for report in subject.train(model, watched, source, start_step=start_step, **PLAIN, **changes):
        reports.append(report)
        if len(watched.updates) < len(reports):  # the optimizers were never asked
            same = {name: p.detach().clone() for name, p in model.named_parameters()}
            watched.updates.append(Update(before=same, after=same))
        watched.updates[len(reports) - 1].report = report
        if len(reports) == count:
            break
    return watched.updates


PLAIN: dict[str, Any] = {
    "objective": "next_token",
    "stage1_unlikelihood": 0.0,
    "stage2_unlikelihood": 0.0,
    "loss_reduction": "mean",
}
"""Settings of the loop for an update that is compared with an independent one, whatever the experiment
minimises."""


def narrow(batch: Batch, columns: int) -> Batch:
    """The first `columns` targets of each row, read as one text. Scores everything that is there where
    nothing scored would be left.
    """
    cut = Batch(batch.input_ids[:, :columns], batch.targets[:, :columns], batch.loss_mask[:, :columns])
    return cut if bool(cut.loss_mask.any()) else cut._replace(loss_mask=torch.ones_like(cut.loss_mask))


class Narrow:
    """The first `columns` targets of every row: enough to compare numbers by, at a fraction of the work."""

    def __init__(self, inner: RowSource, columns: int) -> None:
        self.inner, self.columns = inner, columns
        self.asked: list[list[int]] = []

    def rows(self, numbers: NDArray[np.int64]) -> Batch:
        """The rows, cut."""
        self.asked.append(numbers.tolist())
        return narrow(self.inner.rows(numbers), self.columns)

    def epochs(self, rows: int) -> float:
        """As the whole rows."""
        return self.inner.epochs(rows)

    def fingerprint(self) -> dict[str, Any]:
        """As the whole rows."""
        return self.inner.fingerprint()


class OneBatch:
    """The same few rows at every update."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def rows(self, numbers: NDArray[np.int64]) -> Batch:
        """As many of the rows as asked for, from the first again where there are too few."""
        index = torch.arange(len(numbers)) % len(self.batch.input_ids)
        return self.batch.select(index)

    def epochs(self, rows: int) -> float:
        """Times that the rows are read."""
        return rows / len(self.batch.input_ids)

    def fingerprint(self) -> dict[str, Any]:
        """Nothing is written about them."""
        return {}


def copy_of(subject: Subject, model: BitNetTransformer) -> BitNetTransformer:
    """A model of the same configuration, made as training makes it, with these weights."""
    twin = subject.new_model(model.config)
    own = dict(twin.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in own and own[name].shape == parameter.shape:
                own[name].copy_(parameter)
    return twin
