"""How a run begins, continues and ends: the lock, the resume, the loop with its observers.

What ends a run decides its status: `done` after the last update, `stopped` after a signal (with a checkpoint
of the last finished update), `failed` with the reason otherwise. A failed run never says done.
"""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, Literal

import numpy as np
import torch

from bitnet.allocator import keep_freed_memory
from bitnet.data.stream import Batch, Skip
from bitnet.errors import CheckpointError, NotFiniteError, RunError
from bitnet.files import lock, open_to_append, sweep
from bitnet.interrupt import answered, last_words
from bitnet.nn.transformer import BitNetTransformer
from bitnet.optim.loss_scale import LossScale
from bitnet.optim.optimizer import Optimizers
from bitnet.run.checkpoint import Checkpoint, is_good
from bitnet.run.contents import check_contents
from bitnet.run.eval_set import load_frozen_set
from bitnet.run.layout import RunLayout
from bitnet.run.metrics import LineWriter, Listener, tail
from bitnet.run.signature import is_own, key_path, sign
from bitnet.train.choose import StartOptions, choose_run, state_of
from bitnet.train.config import RunConfig
from bitnet.train.device import choose_machine
from bitnet.train.experiment import Experiment, Task
from bitnet.train.loop import Forward, StepReport, train_steps
from bitnet.train.observe.alarms import Anomalies, SampleAlarms, UpdateAlarms
from bitnet.train.observe.measurements import Evaluation, Probe, Samples
from bitnet.train.observe.observers import (
    Checkpoints,
    Diverged,
    Guard,
    LossAverage,
    Observer,
    Scalars,
    Status,
)
from bitnet.train.observe.progress import ProgressLine
from bitnet.train.observe.trackers import open_mirror
from bitnet.train.resume import begin, resume
from bitnet.train.roll_back import read_skips, roll_back
from bitnet.train.session import Say, Session

AVERAGED_BYTES = 1 << 20
"""Read from the end of metrics/scalars.jsonl on a resume: some two thousand lines, of which the average takes
a hundred."""
State = Literal["done", "stopped", "already_done"]


@dataclass(frozen=True)
class Ended:
    """already_done: there was nothing left to do; signal: which one stopped it."""

    layout: RunLayout
    state: State
    step: int
    signal: int | None = None


def describe(experiment: Experiment, variant: str, config: RunConfig, task: Task) -> dict[str, Any]:
    """The content of meta/config.json."""
    described = {"experiment": experiment.name, "variant": variant, **config.to_json()}
    if experiment.file is not None:
        described["experiment_file"] = experiment.file
    return {**described, "data": {**task.tokenizer.describe(), **described["data"]}}


def run_experiment(
    experiment: Experiment, variant: str, config: RunConfig, options: StartOptions, say: Say
) -> Ended:
    """Train, or continue, or find that it is done. Raises BitnetError; status.json then says failed."""
    task = experiment.open(config)
    described = describe(experiment, variant, config, task)
    layout = choose_run(experiment.run_prefix(config), described, config, options)
    check_contents(layout.root)
    with exclusive(layout):
        if state_of(layout) == "done" and is_finished(layout, config.train.total_steps, say):
            return Ended(layout, "already_done", config.train.total_steps)
        status = Status(layout, config.train)
        try:
            with last_words(lambda number: status.stopped_at_once(number.name)):
                return _run(layout, task, config, described, status, options, say)
        except (KeyboardInterrupt, SystemExit) as error:
            name = (
                signal.Signals(error.code - 128).name
                if isinstance(error, SystemExit) and isinstance(error.code, int)
                else "SIGINT"
            )
            status.stopped_at_once(name)
            raise
        except BaseException as error:
            status.failed(f"{type(error).__name__}: {error}")
            if isinstance(error, OSError):
                raise RunError(
                    f"writing to {layout.root} failed ({error.strerror}); free some space and repeat the "
                    "command to resume"
                ) from error
            raise


def is_finished(layout: RunLayout, total_steps: int, say: Say) -> bool:
    """Whether a run that says done has its last checkpoint. Raises CheckpointError where it has none at
    all.
    """
    if is_good(layout.checkpoint(total_steps)):
        return True
    if not layout.checkpoint_steps():
        raise CheckpointError(
            f"{layout.status} says done, but there is no checkpoint in {layout.checkpoints}; restore it from "
            "a copy, or begin anew under "
            "another --run-id"
        )
    say(
        f"{layout.run_id} says done, but its last checkpoint is missing or damaged; the updates since the "
        "one before are done again"
    )
    return False


@contextmanager
def exclusive(layout: RunLayout) -> Iterator[None]:
    """Hold the run's lock; a lock left by a dead process never blocks, since the system drops it."""
    try:
        layout.root.mkdir(parents=True, exist_ok=True)
        file = open_to_append(layout.lock)
    except OSError as error:
        raise RunError(
            f"the runs folder {layout.root.parent} cannot be written ({error.strerror}); choose another "
            "--runs-dir"
        ) from None
    with file:
        if not lock(file):
            raise RunError(
                f"another process is training {layout.run_id}; wait for it or choose another --run-id"
            )
        for folder in (layout.root, layout.config.parent, layout.frozen_set.parent):
            sweep(folder)
        yield


def _run(
    layout: RunLayout,
    task: Task,
    config: RunConfig,
    described: dict[str, Any],
    status: Status,
    options: StartOptions,
    say: Say,
) -> Ended:
    machine = choose_machine(config.train, options.device)
    keep_freed_memory()
    seed_everything(config.train.seed)
    model = BitNetTransformer(config.model).to(machine.device)
    model.set_product(machine.product, machine.gradient_dtype)
    optimizers = Optimizers(model, config.train.optimizer_config())
    scaling = LossScale(machine.device) if machine.fp16 else None
    session = Session(layout, task, config, machine, model, optimizers, options, say, scaling)
    first = resume(session) or begin(session, described)
    if not is_own(layout) and not sign(layout):
        say(
            f"{key_path()} cannot be written, so the run is not marked as yours: evaluate and diagnose may "
            "ask for --trust"
        )
    status.write("running", first.step)
    say(f"run {layout.root}" + (f", continuing after update {first.step}" if first.step else ""))
    return _train(session, first, status)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch on all devices."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _train(session: Session, first: Checkpoint, status: Status) -> Ended:
    """Attempts until one of them ends the run. After values that are not finite the next one begins at an
    earlier checkpoint.
    """
    received: list[int] = []
    skips = read_skips(session.layout, first)
    with ExitStack() as closing:
        mirrors = [
            closing.enter_context(open_mirror(name, session.layout, session.config.to_json()))
            for name in session.options.mirrors
        ]
        forward = session.paths.forward
        closing.enter_context(stop_signals(received))
        while True:
            try:
                return _attempt(session, forward, first, skips, status, mirrors, received)
            except Diverged as trouble:
                first = roll_back(session, trouble, skips)
                skips = read_skips(session.layout, first)
                status.write("running", first.step)


def _attempt(
    session: Session,
    forward: Forward,
    first: Checkpoint,
    skips: Sequence[Skip],
    status: Status,
    mirrors: Sequence[Listener],
    received: Sequence[int],
) -> Ended:
    """The loop with its observers, until the last update or a signal. Raises Diverged where the weights have
    to go back.
    """
    train, layout = session.config.train, session.layout
    report: StepReport | None = None
    with ExitStack() as closing:
        writers = [closing.enter_context(LineWriter(path, mirrors)) for path in layout.line_files()]
        observers, checkpoints = observers_of(session, first, status, writers, skips)
        if not layout.checkpoint_steps():
            checkpoints.save(0, 0, None)

        steps = train_steps(
            session.model,
            forward,
            session.task.source,
            session.optimizers,
            train,
            start_step=first.step,
            bf16=session.machine.bf16,
            scaling=session.scaling,
            skips=skips,
        )
        for report in steps:
            status.step = report.step  # where it was, should one of the observers fail
            for observer in observers:
                if report.step % observer.every == 0 or report.step == train.total_steps:
                    observer(report)
            if received:
                break

        if received and report is not None and report.step < train.total_steps:
            _save_before_leaving(session, checkpoints, report)
            status.write("stopped", report.step, signal.Signals(received[0]).name)
            return Ended(layout, "stopped", report.step, received[0])
    status.write("done", train.total_steps)
    return Ended(layout, "done", train.total_steps)


def _save_before_leaving(session: Session, checkpoints: Checkpoints, report: StepReport) -> None:
    """A checkpoint of the last finished update; weights that are not finite are left behind, which is
    said.
    """
    if is_good(session.layout.checkpoint(report.step)):
        return
    try:
        checkpoints.save(report.step, report.tokens_seen, report.loss)
    except NotFiniteError as error:
        session.say(str(error))


def observers_of(
    session: Session,
    first: Checkpoint,
    status: Status,
    writers: Sequence[LineWriter],
    skips: Sequence[Skip] = (),
) -> tuple[list[Observer], Checkpoints]:
    """Everything that watches the updates, in the order that each observer asks for (observers.Order)."""
    layout, task, model, train = session.layout, session.task, session.model, session.config.train
    scalars, probes, evaluations, samples = writers
    average = LossAverage()
    average.read(tail(layout.scalars, AVERAGED_BYTES).rows)
    sampler = Samples(samples, model, task, train)
    anomalies = Anomalies(layout, model, task, train, session.say, skips)
    guard = Guard(first.step, first.state.get("refused_in_a_row", 0))
    frozen = [Batch(**tensors) for tensors in load_frozen_set(layout)]
    probe = Probe(probes, model, train, frozen)
    probe.remember(first.memory)
    checkpoints = Checkpoints(
        layout, model, session.optimizers, train, writers, probe.memory, guard, skips, session.scaling
    )
    checkpoints.named.add(first.step)
    observers: list[Observer] = [
        UpdateAlarms(anomalies, average),
        sampler,
        SampleAlarms(anomalies, sampler),
        Scalars(scalars, session.config, session.machine.device, lambda: anomalies.flag),
        average,
        guard,
        ProgressLine(model, train, to_stderr=session.options.progress_to_stderr),
        probe,
        Evaluation(evaluations, model, task, train, average, frozen),
        status,
        checkpoints,
    ]
    return sorted(observers, key=lambda observer: observer.order), checkpoints


@contextmanager
def stop_signals(received: list[int]) -> Iterator[None]:
    """Collect the first SIGINT or SIGTERM; a second one leaves at once, by KeyboardInterrupt or SystemExit.

    Where Python cannot call the handler, because one long operation is running, interrupt.py ends the process
    after the second. Only the main thread may set handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    before = {one: signal.signal(one, note) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
        answered()
