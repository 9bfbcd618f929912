"""The anomaly rules on a live run: flag every anomaly, and leave a folder for the first few of each rule.

The rules about the update run before the samples are drawn, so that their folder is written whatever sampling
does, and the rules about samples after them. Both run before the update's line of metrics, which names every
rule that fired (observers.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from bitnet.data.stream import Skip
from bitnet.nn.transformer import BitNetTransformer
from bitnet.run.layout import RunLayout
from bitnet.train.config import TrainConfig
from bitnet.train.experiment import Task
from bitnet.train.loop import StepReport
from bitnet.train.observe.anomalies import (
    WINDOW,
    Anomaly,
    broken_samples,
    entropy_collapse,
    loss_spike,
    not_finite,
    repetition_surge,
)
from bitnet.train.observe.dump import write_dump
from bitnet.train.observe.guard import ROLL_BACK
from bitnet.train.observe.measurements import Samples
from bitnet.train.observe.scalars import LossAverage


class Anomalies:
    """The anomalies of the present update, and the folders that they leave."""

    def __init__(
        self,
        layout: RunLayout,
        model: BitNetTransformer,
        task: Task,
        config: TrainConfig,
        say: Callable[[str], None],
        skips: Sequence[Skip] = (),
    ) -> None:
        """skips: the first update after each roll-back gets its flag."""
        self.rolled_back = frozenset(skip.step for skip in skips)
        self.layout, self.model, self.task, self.config, self.say = layout, model, task, config, say
        self.step = 0
        self.events: list[str] = []

    @property
    def flag(self) -> str | None:
        """The names of all rules that fired at the present update, separated by commas; None if none did."""
        return ",".join(self.events) or None

    def begin(self, step: int) -> None:
        """Forget the events of the update before."""
        self.step, self.events = step, [ROLL_BACK] if step in self.rolled_back else []

    def record(self, report: StepReport, found: Iterable[Anomaly | None]) -> None:
        """Flag every anomaly, and leave a folder for those whose rule has some of its budget left."""
        for anomaly in found:
            if anomaly is None:
                continue
            self.events.append(anomaly.event)
            self._leave_folder(report, anomaly)

    def _leave_folder(self, report: StepReport, anomaly: Anomaly) -> None:
        folder, task = self.layout.anomaly(report.step, anomaly.event), self.task
        # Folders are named step_NNNNNN_<event>.
        written = [one for one in self.layout.anomaly_folders() if one.name.split("_", 2)[2] == anomaly.event]
        what = f"anomaly at update {report.step}: {anomaly.event}, {anomaly.finding}"
        if not folder.exists() and len(written) >= self.config.max_dumps:
            self.say(f"{what} (no dump: {self.config.max_dumps} of this rule were written)")
            return

        batch = report.batches[0]
        write_dump(folder, anomaly, report.step, self.model, batch, task.tokenizer, task.prompts)
        self.say(f"{what}; see {folder}/README.md")


class UpdateAlarms:
    """The rules about an update's loss and gradient, compared with the average of the losses before it."""

    every = 1

    def __init__(self, anomalies: Anomalies, average: LossAverage) -> None:
        self.anomalies, self.average = anomalies, average

    def __call__(self, report: StepReport) -> None:
        config = self.anomalies.config
        self.anomalies.begin(report.step)
        spike = loss_spike(
            report.loss, list(self.average.losses)[-WINDOW:], config.spike_factor, config.spike_min_nats
        )
        self.anomalies.record(report, [not_finite(report.refused), spike])


class SampleAlarms:
    """The rules about the samples of an update, at the updates that draw some."""

    def __init__(self, anomalies: Anomalies, samples: Samples) -> None:
        self.every, self.anomalies, self.samples = samples.every, anomalies, samples

    def __call__(self, report: StepReport) -> None:
        config, rows = self.anomalies.config, self.samples.rows
        found = [
            broken_samples(rows),
            entropy_collapse(rows, config.entropy_floor),
            repetition_surge(rows, config.repetition_limit),
        ]
        self.anomalies.record(report, found)
