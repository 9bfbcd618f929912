"""Progress for a person: one line per log interval, and in a terminal a line that is rewritten in between."""

from __future__ import annotations

import shutil
import sys
import time
from collections import deque

from bitnet.nn.transformer import BitNetTransformer
from bitnet.terminal import send
from bitnet.train.config import TrainConfig
from bitnet.train.loop import StepReport
from bitnet.train.observe.ternary import zero_share
from bitnet.units import duration


class ProgressLine:
    """Prints how far training is. It runs at every update, and prints at some of them."""

    every = 1
    REFRESH_S = 0.5

    def __init__(self, model: BitNetTransformer, config: TrainConfig, *, to_stderr: bool = False) -> None:
        self.model, self.config = model, config
        self.stream = sys.stderr if to_stderr else sys.stdout
        self.live = self.stream.isatty()
        self.times: deque[float] = deque(maxlen=51)  # ends of updates: the rate is of the last fifty
        self.drawn = 0.0
        self.zeros = zero_share(model)

    def __call__(self, report: StepReport) -> None:
        now = time.perf_counter()
        self.times.append(now)
        last = report.step == self.config.total_steps
        if report.step % self.config.log_every == 0 or report.step == 1 or last:
            self.zeros = zero_share(self.model)
            end = "\n"
        elif self.live and now - self.drawn > self.REFRESH_S:
            end = ""
        else:
            return

        self.drawn = now
        if self.live:
            send(self.stream, "\r\x1b[2K")
        self.stream.write(self._fitted(self._line(report)) + end)
        self.stream.flush()

    def _fitted(self, line: str) -> str:
        return line[: shutil.get_terminal_size().columns - 1] if self.live else line

    def _line(self, report: StepReport) -> str:
        seconds = self.times[-1] - self.times[0]
        per_step = seconds / (len(self.times) - 1) if len(self.times) > 1 else report.step_time_ms / 1e3
        remaining = (self.config.total_steps - report.step) * per_step
        return (
            f"step {report.step}/{self.config.total_steps}  loss {report.loss:.4f}  lr {report.lr:.2e}  "
            f"grad {report.grad_norm:.2f}  {report.tokens / per_step:,.0f} tok/s  zeros {self.zeros:.1%}  "
            f"eta {duration(remaining)}" + (f"  {report.refused}" if report.refused else "")
        )
