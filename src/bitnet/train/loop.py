"""The loop: one optimizer update, one report, again.

It is a generator. Whatever else happens during training (metrics, evaluation, samples, checkpoints) observes the
reports between updates and cannot change them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bitnet.data.stream import Batch, RowSource, row_numbers
from bitnet.nn.transformer import BitNetTransformer
from bitnet.optim.optimizer import Optimizers
from bitnet.optim.update import apply_update
from bitnet.train.config import TrainConfig

Forward = Callable[..., Tensor]
"""What the model does: ids (B, T), and `segments` where a batch has them, to logits (B, T, V)."""


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What one update did. loss: nats per scored token before the update; grad_norm: before clipping."""

    step: int
    tokens_seen: int
    loss: float
    lr: float
    wd: float
    grad_norm: float
    step_time_ms: float
    tokens: int
    refused: str | None
    """Why the update was not applied, or None."""
    batches: tuple[Batch, ...]


def summed_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy summed over scored targets, in nats. logits: (B, T, V)."""
    losses = F.cross_entropy(logits.float().flatten(0, 1), batch.targets.flatten(), reduction="none")  # (B*T,)
    return (losses * batch.loss_mask.flatten()).sum()


def autocast(device: torch.device, bf16: bool) -> AbstractContextManager[object]:
    """bf16 products where asked for."""
    return torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()


def read_batches(source: RowSource, config: TrainConfig, step: int, rank: int, world_size: int, device: torch.device) -> tuple[Batch, ...]:
    """The micro-batches of one update."""
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
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[StepReport]:
    """Yield a report after each of the updates start_step + 1 .. total_steps.

    forward is the model or its compiled form. Gradients are of the mean over the scored tokens of the whole update,
    however its micro-batches split them.
    """
    device = model.final_norm.weight.device
    schedule = config.rates()
    per_step = config.tokens_per_step * world_size
    for step in range(start_step + 1, config.total_steps + 1):
        started = time.perf_counter()
        batches = read_batches(source, config, step, rank, world_size, device)
        scored = max(sum(int(batch.loss_mask.sum()) for batch in batches), 1)
        total = torch.zeros((), device=device)
        for batch in batches:
            with autocast(device, bf16):
                loss = summed_loss(forward(batch.input_ids, segments=batch.segments), batch) / scored
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        mean_loss = float(total)
        rates = schedule.rates_at(step)
        outcome = apply_update(model, optimizers, rates, loss=mean_loss, clip_norm=config.grad_clip_norm)
        yield StepReport(
            step=step,
            tokens_seen=step * per_step,
            loss=mean_loss,
            lr=rates.lr,
            wd=rates.wd,
            grad_norm=outcome.grad_norm,
            step_time_ms=(time.perf_counter() - started) * 1e3,
            tokens=per_step,
            refused=outcome.refused,
            batches=batches,
        )
