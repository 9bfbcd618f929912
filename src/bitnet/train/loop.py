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
from bitnet.nn.transformer import BitNetTransformer
from bitnet.optim.loss_scale import LossScale
from bitnet.optim.optimizer import Optimizers
from bitnet.optim.update import apply_update
from bitnet.train.config import TrainConfig
from bitnet.train.objective import Objective, objective_of, terms_of

Forward = Callable[..., Tensor]
"""What the model does: ids (B, T), and `segments` where a batch has them, to logits (B, T, V)."""


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What one update did. Losses are in nats."""

    step: int
    tokens_seen: int
    loss: float
    """Mean over the update's cases, before the update."""
    penalty: float
    """Mean of what was minimised beside the loss (objective.py)."""
    lr: float
    wd: float
    grad_norm: float
    """Before clipping."""
    step_time_ms: float
    tokens: int
    refused: str | None
    """Why the update was not applied, or None."""
    loss_scale: float | None = None
    """What the loss was multiplied by in this update; None but for fp16."""
    batches: tuple[Batch, ...]


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
    fused_loss: bool = False,
) -> Iterator[StepReport]:
    """Yield a report after each of the updates start_step + 1 .. total_steps.

    forward: the model or its compiled form; scaling: of the loss, for products in fp16; skips: training data
    that is left out; fused_loss: whether head and cross-entropy are computed together.
    """
    device, head = model.device, model.lm_head.weight if fused_loss else None
    schedule = config.rates()
    for step in range(start_step + 1, config.total_steps + 1):
        started = time.perf_counter()

        # The rows of update n, or of a later one where a roll-back has skipped data.
        batches = read_batches(source, config, data_step(step, skips), device)
        loss, penalty = _gradients(forward, batches, objective_of(config, step), config, bf16, scaling, head)

        # The rates are those of this very update, and so is the scale, which apply_update may move.
        rates = schedule.rates_at(step)
        scale = None if scaling is None else scaling.value
        outcome = apply_update(
            model, optimizers, rates, loss=loss, clip_norm=config.grad_clip_norm, scaling=scaling
        )

        yield StepReport(
            step=step,
            tokens_seen=step * config.tokens_per_step,
            loss=loss,
            penalty=penalty,
            lr=rates.lr,
            wd=rates.wd,
            grad_norm=outcome.grad_norm,
            step_time_ms=(time.perf_counter() - started) * 1e3,
            tokens=config.tokens_per_step,
            refused=outcome.refused,
            loss_scale=scale,
            batches=batches,
        )


def read_batches(
    source: RowSource, config: TrainConfig, step: int, device: torch.device
) -> tuple[Batch, ...]:
    """The micro-batches of one update. step: of the data (`data_step`)."""
    size, accumulation = config.batch_size, config.grad_accumulation_steps
    numbers = [
        row_numbers(step, micro, batch_size=size, accumulation=accumulation, rank=0, world_size=1)
        for micro in range(accumulation)
    ]
    return tuple(source.rows(rows).to(device) for rows in numbers)


def _gradients(
    forward: Forward,
    batches: Sequence[Batch],
    objective: Objective,
    config: TrainConfig,
    bf16: bool,
    scaling: LossScale | None,
    head: Tensor | None,
) -> tuple[float, float]:
    """Add the gradients of an update's micro-batches to the parameters. Returns its mean loss and penalty."""
    device = batches[0].input_ids.device
    cases = max(objective.cases(batches), 1)
    # Of the whole update, so that it does not matter how micro-batches split the cases.
    divisor = cases if config.loss_reduction == "mean" else 1

    totals = torch.zeros(2, device=device)
    for batch in batches:
        with autocast(device, bf16, scaling is not None):
            terms = terms_of(objective, forward, batch, head)  # (2,)
        minimised = terms.sum() / divisor
        (minimised if scaling is None else scaling.scaled(minimised)).backward()  # type: ignore[no-untyped-call]
        totals += terms.detach()

    loss, penalty = (totals / cases).tolist()
    return loss, penalty


def autocast(device: torch.device, bf16: bool, fp16: bool = False) -> AbstractContextManager[object]:
    """bf16 or fp16 products where asked for."""
    if not (bf16 or fp16):
        return nullcontext()
    return torch.autocast(device.type, torch.float16 if fp16 else torch.bfloat16)
