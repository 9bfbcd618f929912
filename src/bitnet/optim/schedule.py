"""Learning rate and weight decay as pure functions of the step. Nothing to save, nothing to restore.

Updates are numbered 1..N and update n uses rates_at(n). The two-stage schedule of BitNet training (training
tips of b1.58; arXiv:2504.12285, section 3) with warm-up w and stage boundary m:

    1 <= n <= w       peak * n / w                              (update 1 never runs at the peak)
    w <= n <= m       from peak to stage 2, linear
    m <= n <= N       from stage 2 to the final rate, linear
    weight decay      stage 1 value for n <= m, stage 2 value after

The magnitude of a latent weight is its confidence; switching decay off at m lets the codes settle.

`linear` goes from the peak to the final rate over all updates; `warm_down` holds the peak until m and then
goes to the final rate; `cosine` follows half a cosine. All share the warm-up and the decay boundary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

ScheduleKind = Literal["two_stage", "linear", "warm_down", "cosine"]


class Rates(NamedTuple):
    """What one update runs with."""

    lr: float
    wd: float


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Every figure that rates_at needs. Steps are counted in updates."""

    kind: ScheduleKind
    total_steps: int
    warmup_steps: int
    stage1_end: int
    peak_lr: float
    stage2_lr: float
    final_lr: float
    stage1_wd: float
    stage2_wd: float

    def rates_at(self, step: int) -> Rates:
        """Rates of update `step`, 1..total_steps."""
        assert 1 <= step <= self.total_steps, f"update {step} is outside 1..{self.total_steps}"
        return Rates(self._lr(step), self.stage1_wd if step <= self.stage1_end else self.stage2_wd)

    def _lr(self, step: int) -> float:
        if step <= self.warmup_steps:
            return self.peak_lr * step / self.warmup_steps
        if self.kind == "linear":
            return _line(step, self.warmup_steps, self.total_steps, self.peak_lr, self.final_lr)
        if self.kind == "cosine":
            done = _line(step, self.warmup_steps, self.total_steps, 0.0, 1.0)
            return self.final_lr + (self.peak_lr - self.final_lr) * (1 + math.cos(math.pi * done)) / 2
        middle = self.stage2_lr if self.kind == "two_stage" else self.peak_lr
        if step <= self.stage1_end:
            return _line(step, self.warmup_steps, self.stage1_end, self.peak_lr, middle)
        return _line(step, max(self.stage1_end, self.warmup_steps), self.total_steps, middle, self.final_lr)


def _line(step: int, start: int, end: int, first: float, last: float) -> float:
    """The value at `step` of the straight line from (start, first) to (end, last)."""
    done = (step - start) / max(end - start, 1)
    return first * (1 - done) + last * done  # exactly `last` at the end
