"""Where the processor time of a training command goes, part by part, from the imports to the verdict.

    OMP_NUM_THREADS=1 python benchmarks/time_spent.py arithmetic [--num-steps 100]

It runs `bitnet train NAME --variant quick --device cpu --evaluate` in this process, with a clock around each
part; its own flags are added to the command. The processor time of all threads counts, so that other work
on the machine matters little. A part inside another counts as the outer one: the model's forward pass within
the evaluation is evaluation. `start` is what comes between the imports and the first update.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

import bitnet.train.loop
import bitnet.train.start
from bitnet.cli import evaluate, train
from bitnet.nn.transformer import BitNetTransformer
from bitnet.optim.adamw import AdamW
from bitnet.optim.muon import Muon
from bitnet.train.observe.checkpoints import Checkpoints
from hardware import where, write_results

Call = Callable[..., Any]


class Clock:
    """Seconds of processor time, and calls, by part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float, imports=time.process_time())
        self.calls: dict[str, int] = defaultdict(int)
        self.busy = True
        """Whether a part is running; until the first update that is the start."""

    def timed(self, part: str, function: Call) -> Call:
        """The function, its time added to the part unless another part is running."""

        def call(*words: Any, **options: Any) -> Any:
            if self.busy:
                return function(*words, **options)
            self.busy, started = True, time.process_time()
            try:
                return function(*words, **options)
            finally:
                self.busy = False
                self.seconds[part] += time.process_time() - started
                self.calls[part] += 1

        return call

    def after_the_start(self, function: Call) -> Call:
        """The function whose first call ends the start."""

        def call(*words: Any, **options: Any) -> Any:
            if "start" not in self.seconds:
                self.seconds["start"] = time.process_time() - self.seconds["imports"]
                self.busy = False
            return function(*words, **options)

        return call


@dataclasses.dataclass
class TimedObserver:
    """An observer with a clock around it."""

    every: int
    call: Call

    def __call__(self, report: object) -> None:
        self.call(report)


def put_clocks(clock: Clock) -> None:
    """Replace what a run calls by the same with a clock around it, until this process ends."""
    parts: list[tuple[str, Any, str]] = [
        ("rows", bitnet.train.loop, "read_batches"),
        ("forward", BitNetTransformer, "forward"),
        ("backward", torch.Tensor, "backward"),
        ("clipping", torch.nn.utils, "clip_grad_norm_"),
        ("AdamW", AdamW, "step"),
        ("Muon", Muon, "step"),
        ("Checkpoints", Checkpoints, "save"),
        ("judging", evaluate, "main"),
    ]
    for part, owner, name in parts:
        setattr(owner, name, clock.timed(part, getattr(owner, name)))
    bitnet.train.loop.read_batches = clock.after_the_start(bitnet.train.loop.read_batches)

    start: Any = bitnet.train.start
    observers_of = start.observers_of

    def timed_observers(*words: Any) -> tuple[list[TimedObserver], Checkpoints]:
        observers, checkpoints = observers_of(*words)
        timed = [TimedObserver(one.every, clock.timed(type(one).__name__, one)) for one in observers]
        return timed, checkpoints

    start.observers_of = timed_observers


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment")
    words, flags = parser.parse_known_args()

    clock, started = Clock(), time.perf_counter()
    put_clocks(clock)
    with tempfile.TemporaryDirectory() as runs:
        command = [words.experiment, "--variant", "quick", "--device", "cpu", "--runs-dir", runs]
        train.main([*command, *flags, "--evaluate"])

    total = time.process_time()
    rows = [
        {"part": part, "seconds": seconds, "share": seconds / total, "calls": clock.calls[part]}
        for part, seconds in sorted(clock.seconds.items(), key=lambda one: -one[1])
    ]
    rest = total - sum(clock.seconds.values())
    rows.append({"part": "rest", "seconds": rest, "share": rest / total, "calls": 0})
    print(where())
    for row in rows:
        print(f"  {row['part']:<14}{row['seconds']:>10.2f} s{row['share']:>8.1%}{row['calls'] or '':>8}")
    print(f"  {'total':<14}{total:>10.2f} s, {time.perf_counter() - started:.0f} s on the clock")
    print(f"wrote {write_results(f'time_spent_{words.experiment}', rows)}")


if __name__ == "__main__":
    main()
