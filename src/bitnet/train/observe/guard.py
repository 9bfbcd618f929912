"""When training cannot go on from the weights that it has: three refused updates in a row.

A single update whose loss or gradient is not finite is passed over (optim/update.py). Not here: what happens
then (train/roll_back.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from bitnet.optim.update import LOSS_SCALE_OVERFLOW
from bitnet.train.loop import StepReport

ROLL_BACK = "roll_back"
"""Name of the event in anomaly flags, in the metrics and in the folders of anomalies."""

MOST_REFUSED = 3
"""Refused updates in a row that send the run back. A guess: one or two may be the fault of a few rows."""


class Diverged(Exception):
    """Several updates in a row, or the weights themselves, are not finite, so the run has to go back."""

    def __init__(self, reason: str, refused: Sequence[int], report: StepReport) -> None:
        """refused: the updates in a row that were not applied."""
        super().__init__(reason)
        self.reason, self.refused = reason, tuple(refused)
        self.first, self.last = (self.refused or (report.step,))[0], report.step
        self.batch = report.batches[0]


class Guard:
    """Counts refused updates in a row and raises Diverged at the third. None of them changed a weight."""

    every = 1

    def __init__(self, step: int = 0, refused_in_a_row: int = 0) -> None:
        """step: last finished update; refused_in_a_row: how many up to it were refused."""
        self.refused = list(range(step - refused_in_a_row + 1, step + 1))

    def __call__(self, report: StepReport) -> None:
        # An overflow of fp16 only halves the scale of the loss: it ends a row of refused updates.
        broken = report.refused is not None and report.refused != LOSS_SCALE_OVERFLOW
        self.refused = [*self.refused, report.step] if broken else []

        if report.refused and len(self.refused) >= MOST_REFUSED:
            raise Diverged(report.refused, self.refused, report)
