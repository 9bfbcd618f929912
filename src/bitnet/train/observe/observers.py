"""What watches every update: metrics, status, checkpoints. One call, one period each.

An observer reads reports and the model between updates. It never changes a weight and never draws from the
random state that training uses, so losses are the same with and without it.
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

from bitnet.data.stream import Skip
from bitnet.errors import BitnetError, NotFiniteError, RunError
from bitnet.files import read_json, write_json
from bitnet.nn.transformer import BitNetTransformer
from bitnet.optim.loss_scale import LossScale
from bitnet.optim.optimizer import Optimizers
from bitnet.optim.update import LOSS_SCALE_OVERFLOW
from bitnet.run.checkpoint import Checkpoint, prune, save_checkpoint
from bitnet.run.layout import RunLayout
from bitnet.run.metrics import LineWriter
from bitnet.run.provenance import resident_gb
from bitnet.run.random_state import random_states
from bitnet.train.config import RunConfig, TrainConfig
from bitnet.train.device import peak_flops
from bitnet.train.loop import StepReport
from bitnet.train.observe.anomalies import WINDOW


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
    """It may end the run; the dump and the line are written by then, and no broken model is measured or
    saved."""
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
        """Take up the losses of recorded updates (rows of metrics/scalars.jsonl), without those of refused
        ones.
        """
        self.losses.extend(
            row["loss"] for row in rows if row.get("loss") is not None and not _was_refused(row)
        )

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

    def __init__(
        self, writer: LineWriter, config: RunConfig, device: torch.device, flag: Callable[[], str | None]
    ) -> None:
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
                "loss_scale": report.loss_scale,
            }
        )


class Status:
    """status.json: where the run stands, at every log interval."""

    order = Order.MEASUREMENTS

    def __init__(self, layout: RunLayout, config: TrainConfig) -> None:
        self.every, self.layout, self.config = config.log_every, layout, config
        self.started = time.time()
        self.step = step_before(layout)

    def __call__(self, report: StepReport) -> None:
        self.write("running", report.step)

    def write(self, state: str, step: int, why: str | None = None) -> None:
        """Replace status.json. state: running, done, failed or stopped."""
        self.step = step
        if state != "failed":
            demand_run(self.layout)
        values = {
            "state": state,
            "why": why,
            "step": step,
            "total_steps": self.config.total_steps,
            "pid": os.getpid(),
        }
        write_json(self.layout.status, {**values, "started_unix": self.started, "updated_unix": time.time()})

    def stopped_at_once(self, why: str) -> None:
        """Say that a signal ended the run without a checkpoint of the last update."""
        with suppress(OSError):
            self.write("stopped", self.step, f"{why}; without a checkpoint of the last update")

    def failed(self, why: str) -> None:
        """Say that the run failed and why; on a full disk the old status has to stay."""
        with suppress(OSError):
            if self.layout.root.is_dir():
                self.write("failed", self.step, why)


def demand_run(layout: RunLayout) -> None:
    """Raise RunError where the run's folder is gone, before anything is written into a new one of the same
    name.
    """
    if not layout.config.is_file():
        raise RunError(
            f"{layout.root} was removed or moved while the run was training, so nothing more can be kept; "
            "begin the run again"
        )


def step_before(layout: RunLayout) -> int:
    """The step that status.json names, which holds until this process has done one; 0 for a new run."""
    try:
        step = read_json(layout.status).get("step")
    except BitnetError:
        return 0
    return step if isinstance(step, int) else 0


ROLL_BACK = "roll_back"
"""Name of the event, in anomaly flags, the metrics and the folders of anomalies."""


class Diverged(Exception):
    """Nothing can be learned from here: updates in a row, or the weights, are not finite. The run goes back
    (roll_back.py).
    """

    def __init__(self, reason: str, refused: Sequence[int], report: StepReport) -> None:
        """refused: the updates in a row that were not applied."""
        super().__init__(reason)
        self.reason, self.refused = reason, tuple(refused)
        self.first, self.last = (self.refused or (report.step,))[0], report.step
        self.batch = report.batches[0]


class Guard:
    """Counts refused updates and raises Diverged after three in a row; the weights are as they were before
    the first.
    """

    every, order = 1, Order.GUARD
    LIMIT = 3

    def __init__(self, step: int = 0, refused_in_a_row: int = 0) -> None:
        """step: last finished update; refused_in_a_row: how many up to it were refused."""
        self.refused = list(range(step - refused_in_a_row + 1, step + 1))

    def __call__(self, report: StepReport) -> None:
        broken = report.refused is not None and report.refused != LOSS_SCALE_OVERFLOW
        self.refused = [*self.refused, report.step] if broken else []
        if report.refused and len(self.refused) >= self.LIMIT:
            raise Diverged(report.refused, self.refused, report)


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
        guard: Guard,
        skips: Sequence[Skip],
        scaling: LossScale | None = None,
    ) -> None:
        """memory: what the other observers must find again after a resume; skips: training data that was left
        out.
        """
        self.scaling = scaling
        self.layout, self.model, self.optimizers, self.config = layout, model, optimizers, config
        self.writers, self.memory, self.guard, self.skips = writers, memory, guard, skips
        self.mandatory = config.mandatory_checkpoints()
        self.named: set[int] = set()
        """Steps that a message has promised to the user; they stay while this process trains."""

    def __call__(self, report: StepReport) -> None:
        if self.config.has_checkpoint(report.step):
            try:
                self.save(report.step, report.tokens_seen, report.loss)
            except NotFiniteError:
                raise Diverged("nan_inf_weights", self.guard.refused, report) from None

    def save(self, step: int, tokens_seen: int, loss: float | None) -> None:
        """Write a checkpoint of this step; every metric line up to it is on disk first. Raises NotFiniteError
        for broken weights.

        Nothing is deleted when a signal asks for a checkpoint or while updates are being refused: the
        checkpoint that a run would go back to must be the same one whether it was interrupted or not.
        """
        demand_run(self.layout)
        for writer in self.writers:
            writer.sync()
        answer = {
            "refused_in_a_row": len(self.guard.refused),
            "skipped_data": [list(skip) for skip in self.skips],
        }
        lines = {str(writer.path.relative_to(self.layout.root)): writer.extent() for writer in self.writers}
        scale = None if self.scaling is None else self.scaling.state()
        state = {
            **training_state(self.config, step, tokens_seen, loss),
            **answer,
            "loss_scale": scale,
            "lines": lines,
        }
        model: dict[str, Tensor] = dict(self.model.named_parameters())
        save_checkpoint(
            self.layout, Checkpoint(step, model, self.optimizers.state_tensors(), state, self.memory())
        )
        if self.config.has_checkpoint(step) and not self.guard.refused:
            keep_last, keep_every = self.config.keep_last, self.config.keep_every
            prune(
                self.layout,
                mandatory=self.mandatory,
                keep_last=keep_last,
                keep_every=keep_every,
                named=self.named,
            )


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
        "wd_scheduler_state": {
            "current_step": step,
            "stage1_wd": config.stage1_wd,
            "stage2_wd": config.stage2_wd,
        },
        "rng_states": random_states(),
        "config": "meta/config.json",
    }
