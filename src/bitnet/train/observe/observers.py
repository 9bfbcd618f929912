"""Everything that watches the updates of a run, in the order in which it runs.

An observer reads reports and the model between updates. It never changes a weight and never draws from the
random state that training uses, so losses are the same with and without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from bitnet.data.stream import Skip
from bitnet.run.checkpoint import Checkpoint
from bitnet.run.metrics import LineWriters, tail
from bitnet.train.loop import StepReport
from bitnet.train.observe.alarms import Anomalies, SampleAlarms, UpdateAlarms
from bitnet.train.observe.checkpoints import Checkpoints
from bitnet.train.observe.guard import Guard
from bitnet.train.observe.measurements import Evaluation, Probe, Samples
from bitnet.train.observe.progress import ProgressLine
from bitnet.train.observe.scalars import LossAverage, Scalars
from bitnet.train.observe.status import Status
from bitnet.train.session import Session

AVERAGED_BYTES = 1 << 20
"""Read from the end of metrics/scalars.jsonl on a resume: some two thousand lines, of which the average takes
a hundred.
"""


class Observer(Protocol):
    """Called after update n when n is a multiple of `every`, and after the last update."""

    @property
    def every(self) -> int:
        """Period in updates."""
        ...

    def __call__(self, report: StepReport) -> None:
        """Called after an update with its report."""
        ...


def observers_of(
    session: Session, first: Checkpoint, status: Status, writers: LineWriters, skips: Sequence[Skip] = ()
) -> tuple[list[Observer], Checkpoints]:
    """All observers in the order in which they run, and the one of them that saves checkpoints on demand.

    first: what training goes on from; skips: training data that is left out.
    """
    layout, task, model, config = session.layout, session.task, session.model, session.config
    train, eval_set = config.train, session.eval_set()

    # Observers that others read from, with what they remember from before a resume.
    average = LossAverage()
    average.read(tail(layout.scalars, AVERAGED_BYTES).rows)
    guard = Guard(first.step, first.state.get("refused_in_a_row", 0))
    probe = Probe(writers.quantization, model, train, eval_set)
    probe.remember(first.memory)
    samples = Samples(writers.samples, model, task, train)
    anomalies = Anomalies(layout, model, task, train, session.say, skips)
    checkpoints = Checkpoints(
        layout, model, session.optimizers, train, writers, probe.memory, guard, skips, session.scaling
    )
    checkpoints.named.add(first.step)

    observers: list[Observer] = [
        # First, so that a broken update leaves its folder whatever a later observer does with the model.
        UpdateAlarms(anomalies, average),
        samples,
        # These read the samples of this update.
        SampleAlarms(anomalies, samples),
        # The update's line names every anomaly of the update, so it comes after all alarms.
        Scalars(writers.scalars, config, session.machine.device, lambda: anomalies.flag),
        # The alarms compare a loss with the average of the losses before it, so it joins them only now.
        average,
        # May send the run back. The folder and the line are written by then; what follows would measure or
        # save a broken model.
        guard,
        ProgressLine(model, train, to_stderr=session.options.progress_to_stderr),
        probe,
        Evaluation(writers.evaluations, model, task, train, average, eval_set),
        status,
        # Last: every line of the update is on disk before its checkpoint.
        checkpoints,
    ]
    return observers, checkpoints
