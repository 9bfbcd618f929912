"""Two ways to look at training without touching it: optimizers that record what every update was given and
did, and row sources that show the loop fewer columns, or the same rows again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bitnet.data.stream import Batch, RowSource
from bitnet.diagnose.subject import Subject
from bitnet.nn.transformer import BitNetTransformer
from bitnet.optim.optimizer import Optimizers
from bitnet.optim.schedule import Rates
from bitnet.train.loop import StepReport


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
    optimizers = cast(Optimizers, watched)  # answers all that the loop asks of them
    updates: list[Update] = []
    for report in subject.train(model, optimizers, source, start_step=start_step, **changes):
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
