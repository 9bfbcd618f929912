"""status.json: where a run stands, whether it still trains, and how it ended."""

from __future__ import annotations

import os
import time
from contextlib import suppress

from bitnet.errors import BitnetError, RunError
from bitnet.files import read_json, write_json
from bitnet.run.layout import RunLayout
from bitnet.train.config import TrainConfig
from bitnet.train.loop import StepReport


class Status:
    """Writes status.json at every log interval and at the end."""

    def __init__(self, layout: RunLayout, config: TrainConfig) -> None:
        self.every, self.layout, self.config = config.log_every, layout, config
        self.started = time.time()
        self.step = _recorded_step(layout)

    def __call__(self, report: StepReport) -> None:
        self.write("running", report.step)

    def write(self, state: str, step: int, why: str | None = None) -> None:
        """Replace status.json. state: running, done, failed or stopped."""
        self.step = step
        # What failed the run may be this very error.
        if state != "failed":
            demand_run(self.layout)
        values = {
            "state": state,
            "why": why,
            "step": step,
            "total_steps": self.config.total_steps,
            "pid": os.getpid(),
            "started_unix": self.started,
            "updated_unix": time.time(),
        }
        write_json(self.layout.status, values)

    def stopped_at_once(self, why: str) -> None:
        """Record that a signal ended the run without a checkpoint of the last update."""
        with suppress(OSError):
            self.write("stopped", self.step, f"{why}; without a checkpoint of the last update")

    def failed(self, why: str) -> None:
        """Record that the run failed and why. On a full disk the old status stays."""
        with suppress(OSError):
            if self.layout.root.is_dir():
                self.write("failed", self.step, why)


def demand_run(layout: RunLayout) -> None:
    """Raise RunError where the run's folder is gone, before a new one is made under its name."""
    if not layout.config.is_file():
        raise RunError(
            f"{layout.root} was removed or moved while the run was training, so nothing more can be kept; "
            "begin the run again"
        )


def _recorded_step(layout: RunLayout) -> int:
    """The step in status.json, which holds until this process has finished an update; 0 for a new run."""
    try:
        step = read_json(layout.status).get("step")
    except BitnetError:
        return 0
    return step if isinstance(step, int) else 0
