"""The loop: one optimizer update, one report, again.

It is a generator. Whatever else happens during training (metrics, evaluation, samples, checkpoints) observes
the reports between updates and cannot change them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from bitnet.data.stream import Batch, RowSource, Skip, data_step, row_numbers
from bitnet.errors import ConfigError
from bitnet.nn.transformer import BitNetTransformer
from bitnet.optim.loss_scale import LossScale
from bitnet.optim.optimizer import Optimizers
from bitnet.optim.update import apply_update
from bitnet.train.config import TrainConfig
from bitnet.train.objective import objective_of

Forward = Callable[..., Tensor]
"""What the model does: ids (B, T), and `segments` where a batch has them, to logits (B, T, V)."""


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What one update did. loss: mean over its cases, in nats, before the update; penalty: mean of what was
    minimised beside it (objective.py); grad_norm: before clipping.
    """

    step: int
    tokens_seen: int
    loss: float
    penalty: float
    lr: float
    wd: float
    grad_norm: float
    step_time_ms: float
    tokens: int
    refused: str | None
    """Why the update was not applied, or None."""
    loss_scale: float | None = None
    """What the loss was multiplied by in this update; None but for fp16."""
    batches: tuple[Batch, ...]


def autocast(device: torch.device, bf16: bool, fp16: bool = False) -> AbstractContextManager[object]:
    """bf16 or fp16 products where asked for."""
    if not (bf16 or fp16):
        return nullcontext()
    return torch.autocast(device.type, torch.float16 if fp16 else torch.bfloat16)


def read_batches(
    source: RowSource, config: TrainConfig, step: int, rank: int, world_size: int, device: torch.device
) -> tuple[Batch, ...]:
    """The micro-batches of one update. step: of the data, which is the update's own unless something was
    skipped.
    """
    size, accumulation = config.batch_size, config.grad_accumulation_steps
    numbers = [
        row_numbers(step, micro, batch_size=size, accumulation=accumulation, rank=rank, world_size=world_size)
        for micro in range(accumulation)
    ]
    return tuple(source.rows(rows).to(device) for rows in numbers)


def train_steps(
    model: BitNetTransformer,
    forward: Forward,
    source: RowSource,
    optimizers: Optimizers,
    config: TrainConfig,
    *,
    start_step: int = 0,
    bf16: bool = False,
    scaling: LossScale | None = None,
    skips: Sequence[Skip] = (),
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[StepReport]:
    """Yield a report after each of the updates start_step + 1 .. total_steps. skips: training data that is
    left out.

    forward is the model or its compiled form. scaling: products in fp16, with the loss scaled by this.
    Gradients are of the mean over the cases of the whole update (scored tokens, or pairs; objective.py),
    however its micro-batches split them. Raises ConfigError at once for more than one process: their
    gradients are not exchanged yet, so that their weights would drift apart.
    """
    refuse_several_processes(rank, world_size)
    return _updates(model, forward, source, optimizers, config, start_step, bf16, scaling, skips)


def refuse_several_processes(rank: int, world_size: int) -> None:
    """Raise ConfigError unless this process trains alone."""
    if (rank, world_size) != (0, 1):
        raise ConfigError(
            f"this is process {rank} of {world_size}, but training does not exchange gradients between "
            "processes yet, so each would train "
            "a model of its own; start a single process, without torchrun"
        )


def _updates(
    model: BitNetTransformer,
    forward: Forward,
    source: RowSource,
    optimizers: Optimizers,
    config: TrainConfig,
    start_step: int,
    bf16: bool,
    scaling: LossScale | None,
    skips: Sequence[Skip],
) -> Iterator[StepReport]:
    rank, world_size = 0, 1
    device = model.final_norm.weight.device
    schedule = config.rates()
    per_step = config.tokens_per_step * world_size
    for step in range(start_step + 1, config.total_steps + 1):
        started = time.perf_counter()
        objective = objective_of(config, step)
        batches = read_batches(source, config, data_step(step, skips), rank, world_size, device)
        cases = max(objective.cases(batches), 1)
        divisor = cases if config.loss_reduction == "mean" else 1
        totals = torch.zeros(2, device=device)
        for batch in batches:
            with autocast(device, bf16, scaling is not None):
                terms = objective.terms(forward(batch.input_ids, **batch.context()), batch)
            minimised = terms.sum() / divisor
            (minimised if scaling is None else scaling.scaled(minimised)).backward()  # type: ignore[no-untyped-call]
            totals += terms.detach()
        loss, penalty = (totals / cases).tolist()
        rates = schedule.rates_at(step)
        scale = None if scaling is None else scaling.value
        outcome = apply_update(
            model, optimizers, rates, loss=loss, clip_norm=config.grad_clip_norm, scaling=scaling
        )
        yield StepReport(
            step=step,
            tokens_seen=step * per_step,
            loss=loss,
            penalty=penalty,
            lr=rates.lr,
            wd=rates.wd,
            grad_norm=outcome.grad_norm,
            step_time_ms=(time.perf_counter() - started) * 1e3,
            tokens=per_step,
            refused=outcome.refused,
            loss_scale=scale,
            batches=batches,
        )
