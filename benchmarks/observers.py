"""The cost of watching a run: the quick arithmetic run with its observers, and without them, in turns.

    python benchmarks/observers.py [--steps 2000] [--block 100]

One process trains; its blocks of updates are observed and unobserved in turns, so that both see the same
machine. A pair is one block of each. Evaluation and samples are timed separately inside the observed blocks,
and do not count as watching.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch

from bitnet.allocator import keep_freed_memory
from bitnet.experiments.arithmetic import QUICK, ArithmeticTask
from bitnet.files import write_json
from bitnet.nn.transformer import BitNetTransformer
from bitnet.optim.optimizer import Optimizers
from bitnet.run.checkpoint import Checkpoint
from bitnet.run.eval_set import save_frozen_set
from bitnet.run.layout import RunLayout
from bitnet.run.metrics import open_writers
from bitnet.train.device import choose_machine
from bitnet.train.loop import StepReport, train_steps
from bitnet.train.observe.observers import Observer, observers_of
from bitnet.train.observe.status import Status
from bitnet.train.session import Session, StartOptions
from bitnet.train.start import seed_everything
from hardware import where, write_results


def open_session(steps: int, root: Path) -> Session:
    """The quick arithmetic run, stretched to `steps` updates."""
    config = dataclasses.replace(
        QUICK, train=dataclasses.replace(QUICK.train.with_total_steps(steps), checkpoint_every=10 * steps)
    )
    device = torch.device("cpu")
    machine = choose_machine(config.train, device)
    keep_freed_memory()
    seed_everything(config.train.seed)
    model = BitNetTransformer(config.model)
    model.set_product(machine.product, machine.gradient_dtype)
    optimizers = Optimizers(model, config.train.optimizer_config())
    options = StartOptions(runs_dir=root, device=device)
    layout = RunLayout(root / "observed")
    return Session(layout, ArithmeticTask(config), config, machine, model, optimizers, options, print)


def timed(observer: Observer, spent: dict[str, float]) -> Callable[[StepReport], None]:
    """The observer, its seconds added to `spent` under its name."""

    def call(report: StepReport) -> None:
        started = time.perf_counter()
        observer(report)
        spent[type(observer).__name__] += time.perf_counter() - started

    return call


def measure(steps: int, block: int, spent: dict[str, float]) -> dict[bool, list[float]]:
    """Seconds of each block, observed (True) and not, without evaluation and samples."""
    blocks: dict[bool, list[float]] = {True: [], False: []}
    with tempfile.TemporaryDirectory() as root, ExitStack() as closing:
        session = open_session(steps, Path(root))
        train = session.config.train
        writers = closing.enter_context(open_writers(session.layout))
        frozen = session.task.frozen_evaluation()
        digest = save_frozen_set(session.layout, [batch.tensors() for batch in frozen])
        write_json(session.layout.fingerprint, {"evaluation_sha256": digest})
        start = Checkpoint(0, {}, {}, {}, {})
        observers, _ = observers_of(session, start, Status(session.layout, train), writers)
        calls = [(observer.every, timed(observer, spent)) for observer in observers]

        started, apart_before = time.perf_counter(), 0.0
        for report in train_steps(
            session.model, session.model, session.task.source, session.optimizers, train
        ):
            watched = (report.step - 1) // block % 2 == 0
            for every, call in calls if watched else []:
                if report.step % every == 0:
                    call(report)
            if report.step % block == 0:
                now, apart_now = time.perf_counter(), spent["Evaluation"] + spent["Samples"]
                blocks[watched].append(now - started - (apart_now - apart_before))
                started, apart_before = now, apart_now
    return blocks


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--block", type=int, default=100)
    args = parser.parse_args()

    spent: dict[str, float] = defaultdict(float)
    blocks = measure(args.steps, args.block, spent)
    ratios = [on / off for on, off in zip(blocks[True], blocks[False], strict=True)]
    observed = sum(blocks[True])
    apart = ("Evaluation", "Samples", "Checkpoints")
    watching = sum(seconds for name, seconds in spent.items() if name not in apart)
    row = {
        "pairs": len(ratios),
        "updates_per_block": args.block,
        "watching_slowdown_median": statistics.median(ratios) - 1,
        "watching_slowdown_min": min(ratios) - 1,
        "watching_slowdown_max": max(ratios) - 1,
        "watching_share_measured_inside": watching / observed,
        "evaluation_share": spent["Evaluation"] / observed,
        "samples_share": spent["Samples"] / observed,
        "seconds_by_observer": {name: round(seconds, 3) for name, seconds in spent.items()},
        "observed_seconds": observed,
    }
    print(where())
    for key, value in row.items():
        print(f"  {key:<34}{value}")
    print(f"wrote {write_results('observers', [row])}")


if __name__ == "__main__":
    main()
