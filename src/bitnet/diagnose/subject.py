"""What is examined: an experiment with its settings, and a fresh model of it or a run's checkpoint.

A `Subject` makes models and optimizers, reads rows and runs updates with the functions that training itself
calls, so that whatever is broken in them is broken here too. There are two ways to look at training without
touching it: `Watched` optimizers, which record what every update was given, and row sources that show the
loop fewer columns, or the same rows again. Not here: how a subject is opened (open_subject.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bitnet.data.stream import Batch, RowSource
from bitnet.nn.config import BitNetConfig
from bitnet.nn.transformer import BitNetTransformer
from bitnet.optim.loss_scale import LossScale
from bitnet.optim.optimizer import Optimizers
from bitnet.optim.schedule import Rates
from bitnet.run.layout import RunLayout
from bitnet.text.tokenizer import Tokenizer
from bitnet.train import loop
from bitnet.train.config import RunConfig, TrainConfig
from bitnet.train.device import Machine, choose_machine
from bitnet.train.experiment import Criterion, Experiment, Task, Variant
from bitnet.train.loop import StepReport
from bitnet.train.start import seed_everything
from bitnet.trained_model import TrainedModel


def new_model(shape: BitNetConfig, train: TrainConfig, device: torch.device) -> BitNetTransformer:
    """A model as training makes it: seeded, and with the products that its settings choose on this device."""
    machine = choose_machine(train, device)
    seed_everything(train.seed)
    model = BitNetTransformer(shape).to(device)
    full = "full" in (shape.weights, shape.activations)
    model.set_product("float" if full else machine.product, machine.gradient_dtype)
    return model


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One experiment with a fresh model, or one run with its checkpoint. `changes` of the methods are
    settings of training to replace.
    """

    name: str
    experiment: Experiment
    variant: str
    settings: RunConfig
    task: Task
    model: BitNetTransformer
    """The fresh model, or the one of the run's checkpoint."""
    layout: RunLayout | None = None
    step: int = 0
    """Updates behind `model`."""
    step_named: bool = True
    """Whether the user named this checkpoint; otherwise it should be the newest good one."""
    damaged: Sequence[str] = ()
    """What is wrong with checkpoints that were skipped."""
    full: bool = False
    """Whether the slow checks are wanted too."""

    @property
    def config(self) -> BitNetConfig:
        """The model's shape."""
        return self.settings.model

    @cached_property
    def training(self) -> Mapping[str, Any]:
        """The section `training` of meta/config.json: what was asked for, in the seeds' keys."""
        section: dict[str, Any] = self.settings.to_json()["training"]
        return section

    @cached_property
    def data(self) -> Mapping[str, Any]:
        """The section `data`."""
        section: dict[str, Any] = self.settings.to_json()["data"]
        return section

    @property
    def declared(self) -> Variant:
        """The variant as the experiment declares it, which a run may have changed."""
        return self.experiment.variants[self.variant]

    @property
    def criteria(self) -> Sequence[Criterion]:
        """When the variant counts as a success."""
        return self.declared.criteria

    @property
    def planned_tokens(self) -> int:
        """Tokens that the variant plans."""
        return self.declared.config.train.total_tokens

    @property
    def fresh(self) -> bool:
        """Whether there is no run, only an experiment."""
        return self.layout is None

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.model.final_norm.weight.device

    @property
    def bf16(self) -> bool:
        """Whether training computes products in bf16 or fp16."""
        machine = self._machine(self.settings.train)
        return machine.bf16 or machine.fp16

    def _machine(self, train: TrainConfig) -> Machine:
        return choose_machine(train, self.device)

    def new_model(self, shape: BitNetConfig) -> BitNetTransformer:
        """A fresh model of this shape."""
        return new_model(shape, self.settings.train, self.device)

    def new_optimizers(self, model: BitNetTransformer, **changes: Any) -> Optimizers:
        """Fresh optimizers of a model."""
        return Optimizers(model, dataclasses.replace(self.settings.train, **changes).optimizer_config())

    def rates_at(self, step: int, **changes: Any) -> Rates:
        """Learning rate and weight decay of an update."""
        return dataclasses.replace(self.settings.train, **changes).rates().rates_at(step)

    def read_update(self, source: RowSource, step: int) -> Sequence[Batch]:
        """The micro-batches that the loop reads from a source at an update."""
        return loop.read_batches(source, self.settings.train, step, self.device)

    def train(
        self,
        model: BitNetTransformer,
        optimizers: Optimizers | Watched,
        source: RowSource,
        *,
        start_step: int = 0,
        num_steps: int | None = None,
        **changes: Any,
    ) -> Iterator[StepReport]:
        """The training loop. num_steps: the same recipe in so many updates."""
        train = self.settings.train if num_steps is None else self.settings.train.with_total_steps(num_steps)
        chosen = dataclasses.replace(train, **changes)
        machine = self._machine(chosen)
        return loop.train_steps(
            model,
            model,
            source,
            cast(Optimizers, optimizers),
            chosen,
            start_step=start_step,
            bf16=machine.bf16,
            scaling=LossScale(machine.device) if machine.fp16 else None,
        )

    def complete(self, tokenizer: Tokenizer, prompt: str, count: int) -> str:
        """What a user of the model is shown after a prompt, in at most `count` tokens."""
        trained = TrainedModel(self.layout or RunLayout(Path()), self.step, self.model, tokenizer)
        return trained.complete(prompt, max_new_tokens=count, stop=None)


@dataclass(frozen=True, kw_only=True)
class Move:
    """What the optimizers were given at an update, and what they did. Nothing where they were never asked.

    gradients: after clipping; None: no gradient at all. before, after: the weights.
    """

    rates: Rates | None = None
    gradients: Mapping[str, Tensor | None] = field(default_factory=dict)
    before: Mapping[str, Tensor]
    after: Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Update(Move):
    """One update with the loop's report of it."""

    report: StepReport


class Watched:
    """The real optimizers, with a record of every move. Everything but `step` is passed through."""

    def __init__(self, model: nn.Module, inner: Optimizers) -> None:
        self._model, self._inner = model, inner
        self.moves: list[Move] = []

    def step(self, rates: Rates) -> None:
        """Record what comes in, let the real optimizers work, and record what came of it."""
        gradients = {
            name: None if p.grad is None else p.grad.detach().clone()
            for name, p in self._model.named_parameters()
        }
        before = copies_of(self._model)
        self._inner.step(rates)
        move = Move(rates=rates, gradients=gradients, before=before, after=copies_of(self._model))
        self.moves.append(move)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def copies_of(model: nn.Module) -> dict[str, Tensor]:
    """The weights as they are now, by name."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


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
    updates: list[Update] = []
    for report in subject.train(model, watched, source, start_step=start_step, **changes):
        if len(watched.moves) == len(updates):  # the optimizers were not asked
            watched.moves.append(Move(before=copies_of(model), after=copies_of(model)))
        updates.append(Update(**vars(watched.moves[len(updates)]), report=report))
        if len(updates) == count:
            break
    return updates


PLAIN: dict[str, Any] = {
    "objective": "next_token",
    "stage1_unlikelihood": 0.0,
    "stage2_unlikelihood": 0.0,
    "loss_reduction": "mean",
}
"""Settings of the loop for an update that is compared with an independent one, whatever the experiment
minimises."""


def small_steps(subject: Subject, rows: int, columns: int, micro: int = 1) -> dict[str, Any]:
    """Settings of small plain updates: `micro` micro-batches of `rows` rows of at most `columns` targets."""
    width = min(columns, subject.settings.train.seq_len)
    return {"batch_size": rows, "grad_accumulation_steps": micro, "seq_len": width, **PLAIN}


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
