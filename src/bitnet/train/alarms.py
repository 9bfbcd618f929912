"""The anomaly rules on a live run: flag every hit, leave a folder for the first few."""

from __future__ import annotations

from collections.abc import Callable

from bitnet.diagnose.anomalies import WINDOW, Anomaly, entropy_collapse, loss_spike, not_finite, repetition_surge
from bitnet.diagnose.dump import write_dump
from bitnet.nn.transformer import BitNetTransformer
from bitnet.run.layout import RunLayout
from bitnet.train.config import TrainConfig
from bitnet.train.loop import StepReport
from bitnet.train.measurements import Samples
from bitnet.train.observers import LossAverage
from bitnet.train.recipe import Task


class Alarms:
    """Runs before the loss of this update joins the average, and after the samples of this update."""

    every = 1

    def __init__(
        self,
        layout: RunLayout,
        model: BitNetTransformer,
        task: Task,
        config: TrainConfig,
        average: LossAverage,
        samples: Samples,
        say: Callable[[str], None],
    ) -> None:
        self.layout, self.model, self.task, self.config = layout, model, task, config
        self.average, self.samples, self.say = average, samples, say
        self.flag: str | None = None

    def __call__(self, report: StepReport) -> None:
        found = self.check(report)
        self.flag = found[0].event if found else None
        for anomaly in found:
            self._record(report, anomaly)

    def check(self, report: StepReport) -> list[Anomaly]:
        """Every rule that this update fires."""
        config = self.config
        rows = self.samples.rows if self.samples.step == report.step else []
        candidates = [
            not_finite(report.refused),
            loss_spike(report.loss, list(self.average.losses)[-WINDOW:], config.spike_factor, config.spike_min_nats),
            entropy_collapse(rows, config.entropy_floor),
            repetition_surge(rows, config.repetition_limit),
        ]
        return [anomaly for anomaly in candidates if anomaly is not None]

    def _record(self, report: StepReport, anomaly: Anomaly) -> None:
        folder = self.layout.anomaly(report.step, anomaly.event)
        if not folder.exists() and len(self.layout.anomaly_folders()) >= self.config.max_dumps:
            self.say(f"anomaly at update {report.step}: {anomaly.event}, {anomaly.finding} (no dump: {self.config.max_dumps} were written)")
            return
        write_dump(folder, anomaly, report.step, self.model, report.batches[0], self.task.tokenizer, self.task.prompts)
        self.say(f"anomaly at update {report.step}: {anomaly.event}, {anomaly.finding}; see {folder}/README.md")
