"""What watches every update: metrics, status, checkpoints. One call, one period each.

An observer reads reports and the model between updates. It never changes a weight and never draws from the random
state that training uses, so losses are the same with and without it.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Protocol

import torch
from torch import Tensor

from bitnet.diagnose.anomalies import WINDOW
from bitnet.errors import TrainingFailed
from bitnet.files import write_json
from bitnet.nn.transformer import BitNetTransformer
from bitnet.optim.optimizer import Optimizers
from bitnet.run.checkpoint import Checkpoint, prune, save_checkpoint
from bitnet.run.layout import RunLayout
from bitnet.run.metrics import LineWriter
from bitnet.run.provenance import resident_gb
from bitnet.run.random_state import random_states
from bitnet.train.config import RunConfig, TrainConfig
from bitnet.train.loop import StepReport
from bitnet.train.machine import peak_flops


class Order(IntEnum):
    """When an observer runs within an update. Each of these has a reason to run after those above it."""

    UPDATE_ALARMS = 0
    """First, so that a broken update has its dump whatever a later observer does with the broken model."""
    SAMPLES = 1
    SAMPLE_ALARMS = 2
    """They read the samples of this update."""
    LINE = 3
    """The update's line of metrics names every anomaly of the update."""
    AVERAGE = 4
    """The alarms compare a loss with the average before it."""
    GUARD = 5
    """It may end the run; the dump and the line are written by then, and no broken model is measured or saved."""
    MEASUREMENTS = 6
    CHECKPOINT = 7
    """Last: every metric line of the update is on disk before its checkpoint."""


class Observer(Protocol):
    """Called after update n when n is a multiple of `every`, and after the last update."""

    @property
    def every(self) -> int:
        """Period in updates."""
        ...

    @property
    def order(self) -> Order:
        """Which observers run before and after this one, however they are listed."""
        ...

    def __call__(self, report: StepReport) -> None:
        """Called after an update with its report."""
        ...


@dataclass
class LossAverage:
    """Mean loss of the last 100 updates; shared by the observers that need it."""

    every: int = 1
    order: Order = Order.AVERAGE
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))

    def __call__(self, report: StepReport) -> None:
        if report.refused is None:
            self.losses.append(report.loss)

    def read(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take up the losses of recorded updates (rows of metrics/scalars.jsonl), without those of refused ones."""
        self.losses.extend(row["loss"] for row in rows if row.get("loss") is not None and not _was_refused(row))

    @property
    def value(self) -> float | None:
        """The average, or None before the first update."""
        return sum(self.losses) / len(self.losses) if self.losses else None


def _was_refused(row: Mapping[str, Any]) -> bool:
    """Lines written before there was a key `refused` tell it by their flag."""
    return row.get("refused") is not None or str(row.get("anomaly_flag")).startswith("nan_inf_")


class Scalars:
    """metrics/scalars.jsonl: one line per update, with the seeds' keys. Memory in GB of 10^9 bytes."""

    every, order = 1, Order.LINE

    def __init__(self, writer: LineWriter, config: RunConfig, device: torch.device, flag: Callable[[], str | None]) -> None:
        """flag: the events that the anomaly rules saw at this update, if any."""
        self.writer, self.device, self.flag = writer, device, flag
        self.flops_per_token = config.model.flops_per_token(config.train.seq_len)
        self.peak_flops = peak_flops(device)

    def __call__(self, report: StepReport) -> None:
        on_gpu = self.device.type == "cuda"
        tokens_per_sec = report.tokens / (report.step_time_ms / 1e3)
        self.writer.write(
            {
                "step": report.step,
                "tokens_seen": report.tokens_seen,
                "loss": report.loss,
                "penalty": report.penalty,
                "lr": report.lr,
                "wd": report.wd,
                "grad_norm": report.grad_norm,
                "step_time_ms": report.step_time_ms,
                "tokens_per_sec": tokens_per_sec,
                "gpu_mem_allocated_gb": torch.cuda.memory_allocated(self.device) / 1e9 if on_gpu else 0.0,
                "gpu_mem_reserved_gb": torch.cuda.memory_reserved(self.device) / 1e9 if on_gpu else 0.0,
                "process_mem_gb": resident_gb(),
                "mfu": tokens_per_sec * self.flops_per_token / self.peak_flops if self.peak_flops else None,
                "anomaly_flag": self.flag(),
                "refused": report.refused,
            }
        )


class Status:
    """status.json: where the run stands, at every log interval."""

    order = Order.MEASUREMENTS

    def __init__(self, layout: RunLayout, config: TrainConfig) -> None:
        self.every, self.layout, self.config = config.log_every, layout, config
        self.started = time.time()
        self.step = 0

    def __call__(self, report: StepReport) -> None:
        self.write("running", report.step)

    def write(self, state: str, step: int, why: str | None = None) -> None:
        """Replace status.json. state: running, done, failed or stopped."""
        self.step = step
        values = {"state": state, "why": why, "step": step, "total_steps": self.config.total_steps, "pid": os.getpid()}
        write_json(self.layout.status, {**values, "started_unix": self.started, "updated_unix": time.time()})

    def failed(self, why: str) -> None:
        """Say that the run failed and why; on a full disk the old status has to stay."""
        with suppress(OSError):
            self.write("failed", self.step, why)


class Guard:
    """Ends the run after three refused updates in a row: the weights are as they were before the first."""

    every, order = 1, Order.GUARD
    LIMIT = 3

    def __init__(self) -> None:
        self.refused = 0

    def __call__(self, report: StepReport) -> None:
        self.refused = self.refused + 1 if report.refused else 0
        if self.refused >= self.LIMIT:
            raise TrainingFailed(
                f"{report.refused} in {self.LIMIT} updates in a row, the last one step {report.step}; no weight was changed by them. "
                "Lower --train.peak-lr and look at metrics/scalars.jsonl"
            )


class Checkpoints:
    """Checkpoints at the mandatory steps, at every checkpoint_every, and on demand; old ones are dropped."""

    every, order = 1, Order.CHECKPOINT

    def __init__(
        self,
        layout: RunLayout,
        model: BitNetTransformer,
        optimizers: Optimizers,
        config: TrainConfig,
        writers: Sequence[LineWriter],
        memory: Callable[[], dict[str, Tensor]],
    ) -> None:
        """memory: what the other observers must find again after a resume."""
        self.layout, self.model, self.optimizers, self.config = layout, model, optimizers, config
        self.writers, self.memory = writers, memory
        self.mandatory = config.mandatory_checkpoints()

    def __call__(self, report: StepReport) -> None:
        if report.step % self.config.checkpoint_every == 0 or report.step in self.mandatory:
            self.save(report.step, report.tokens_seen, report.loss)

    def save(self, step: int, tokens_seen: int, loss: float | None) -> None:
        """Write a checkpoint of this step; every metric line up to it is on disk first."""
        for writer in self.writers:
            writer.sync()
        state = training_state(self.config, step, tokens_seen, loss)
        model: dict[str, Tensor] = dict(self.model.named_parameters())
        save_checkpoint(self.layout, Checkpoint(step, model, self.optimizers.state_tensors(), state, self.memory()))
        prune(self.layout, mandatory=self.mandatory, keep_last=self.config.keep_last, keep_every=self.config.keep_every)


def training_state(config: TrainConfig, step: int, tokens_seen: int, loss: float | None) -> dict[str, Any]:
    """state.json with the seeds' keys. The schedules are functions of the step; their part is for readers."""
    return {
        "step": step,
        "tokens_seen": tokens_seen,
        "loss": loss,
        "model_state_dict": "model.safetensors",
        "optimizer_state_dict": "optimizer.safetensors",
        "lr_scheduler_state": {
            "current_step": step,
            "peak_lr": config.peak_lr,
            "stage2_lr": config.stage2_lr,
            "final_lr": config.final_lr,
        },
        "wd_scheduler_state": {"current_step": step, "stage1_wd": config.stage1_wd, "stage2_wd": config.stage2_wd},
        "rng_states": random_states(),
        "config": "meta/config.json",
    }
