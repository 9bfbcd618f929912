"""metrics/scalars.jsonl, one line per update, and the moving average of the loss."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from bitnet.run.metrics import LineWriter
from bitnet.run.provenance import resident_gb
from bitnet.train.config import RunConfig
from bitnet.train.device import peak_flops
from bitnet.train.loop import StepReport
from bitnet.train.observe.anomalies import WINDOW


class LossAverage:
    """Mean loss of the last 100 applied updates, for the alarms and the evaluation."""

    every = 1

    def __init__(self) -> None:
        self.losses: deque[float] = deque(maxlen=WINDOW)

    def __call__(self, report: StepReport) -> None:
        if report.refused is None:
            self.losses.append(report.loss)

    def read(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take over the losses of recorded updates (rows of metrics/scalars.jsonl), refused ones left out."""
        self.losses.extend(
            row["loss"] for row in rows if row.get("loss") is not None and not _was_refused(row)
        )

    @property
    def value(self) -> float | None:
        """The average, or None before the first update."""
        return sum(self.losses) / len(self.losses) if self.losses else None


def _was_refused(row: Mapping[str, Any]) -> bool:
    """Whether a recorded update was refused. Lines older than the key `refused` have only their flag."""
    return row.get("refused") is not None or str(row.get("anomaly_flag")).startswith("nan_inf_")


class Scalars:
    """Writes an update's line, with the seeds' keys. Memory in GB of 10^9 bytes."""

    every = 1

    def __init__(
        self, writer: LineWriter, config: RunConfig, device: torch.device, flag: Callable[[], str | None]
    ) -> None:
        """flag: the names of the anomaly rules that fired at this update, if any."""
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
