"""How a run begins, continues and ends.

    run_experiment   finds the run directory (resume.py), locks it, and records how training ends
    _open_session    builds the model and its optimizers for this machine
    resume or begin  puts the newest good checkpoint back (resume.py), or writes what a new run starts with
    _train           trains; after values that are not finite it goes back to a checkpoint (roll_back.py)
    _attempt         runs the loop with its observers until the last update or a signal

A run ends as `done` after the last update, as `stopped` after a signal (with a checkpoint of the last
finished update), and otherwise as `failed` with the reason. A failed run never says done.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from bitnet.allocator import keep_freed_memory
from bitnet.data.stream import Skip
from bitnet.errors import CheckpointError, NotFiniteError, RunError
from bitnet.files import exclusive, sweep
from bitnet.interrupt import last_words, noting_stop_signals
from bitnet.nn.transformer import BitNetTransformer
from bitnet.optim.loss_scale import LossScale
from bitnet.optim.optimizer import Optimizers
from bitnet.run.checkpoint import Checkpoint, is_good
from bitnet.run.contents import check_contents
from bitnet.run.layout import RunLayout
from bitnet.run.metrics import Listener, open_writers
from bitnet.run.sessions import last_session
from bitnet.run.signature import is_own, key_path, sign
from bitnet.train.begin import begin
from bitnet.train.compiled import Say
from bitnet.train.config import RunConfig
from bitnet.train.device import choose_machine
from bitnet.train.experiment import Experiment, Task
from bitnet.train.loop import StepReport, train_steps
from bitnet.train.observe.checkpoints import Checkpoints
from bitnet.train.observe.guard import Diverged
from bitnet.train.observe.observers import observers_of
from bitnet.train.observe.status import Status
from bitnet.train.observe.trackers import open_tracker
from bitnet.train.resume import choose_run, resume, state_of
from bitnet.train.roll_back import read_skips, roll_back
from bitnet.train.session import Session, StartOptions

State = Literal["done", "stopped", "already_done"]


@dataclass(frozen=True)
class Ended:
    """already_done: there was nothing left to do; signal: which one stopped it."""

    layout: RunLayout
    state: State
    step: int
    signal: int | None = None


def run_experiment(
    experiment: Experiment, variant: str, config: RunConfig, options: StartOptions, say: Say
) -> Ended:
    """Train, or continue, or find that it is done. Raises BitnetError; status.json then says failed."""
    task = experiment.open(config)
    described = describe(experiment, variant, config, task)
    layout = choose_run(experiment.run_prefix(config), described, config, options)
    check_contents(layout.root)  # before the lock is opened: what stands there may come from somebody else

    with _locked(layout):
        if state_of(layout) == "done" and _is_finished(layout, config.train.total_steps, say):
            return Ended(layout, "already_done", config.train.total_steps)
        status = Status(layout, config.train)
        with _recording_the_end(status):
            session = _open_session(layout, task, config, options, say)
            first = resume(session) or begin(session, described)
            if not is_own(layout) and not sign(layout):
                say(
                    f"{key_path()} cannot be written, so the run is not marked as yours: evaluate and "
                    "diagnose may ask for --trust"
                )
            status.write("running", first.step)
            say(f"run {layout.root}" + (f", continuing after update {first.step}" if first.step else ""))
            return _train(session, first, status)


def describe(experiment: Experiment, variant: str, config: RunConfig, task: Task) -> dict[str, Any]:
    """The content of meta/config.json."""
    described = {"experiment": experiment.name, "variant": variant, **config.to_json()}
    if experiment.file is not None:
        described["experiment_file"] = experiment.file
    return {**described, "data": {**task.tokenizer.describe(), **described["data"]}}


@contextmanager
def _locked(layout: RunLayout) -> Iterator[None]:
    """Hold the run's lock. The system drops it with the process, so a dead one never blocks the next."""
    busy = RunError(f"another process is training {layout.run_id}; wait for it or choose another --run-id")
    with ExitStack() as closing:
        try:
            layout.root.mkdir(parents=True, exist_ok=True)
            closing.enter_context(exclusive(layout.lock, busy))
        except OSError as error:
            raise RunError(
                f"the runs folder {layout.root.parent} cannot be written ({error.strerror}); choose another "
                "--runs-dir"
            ) from None
        # Only the holder of the lock may delete what killed processes left half-written.
        for folder in (layout.root, layout.config.parent, layout.frozen_set.parent):
            sweep(folder)
        yield


def _is_finished(layout: RunLayout, total_steps: int, say: Say) -> bool:
    """Whether a run that says done has its last checkpoint. Raises CheckpointError where it has none."""
    if is_good(layout.checkpoint(total_steps)):
        return True
    if not layout.checkpoint_steps():
        raise CheckpointError(
            f"{layout.status} says done, but there is no checkpoint in {layout.checkpoints}; restore it from "
            "a copy, or begin anew under another --run-id"
        )
    say(
        f"{layout.run_id} says done, but its last checkpoint is missing or damaged; the updates since the "
        "one before are done again"
    )
    return False


@contextmanager
def _recording_the_end(status: Status) -> Iterator[None]:
    """Write to status.json why training ended early, whatever ended it."""
    try:
        with last_words(lambda number: status.stopped_at_once(number.name)):
            yield
    except (KeyboardInterrupt, SystemExit) as error:
        # A second signal: interrupt.py raises SystemExit(128 + its number), or KeyboardInterrupt for SIGINT.
        code = error.code if isinstance(error, SystemExit) else None
        status.stopped_at_once(signal.Signals(code - 128).name if isinstance(code, int) else "SIGINT")
        raise
    except BaseException as error:
        status.failed(f"{type(error).__name__}: {error}")
        if isinstance(error, OSError):
            raise RunError(
                f"writing to {status.layout.root} failed ({error.strerror}); free some space and repeat the "
                "command to resume"
            ) from error
        raise


def _open_session(
    layout: RunLayout, task: Task, config: RunConfig, options: StartOptions, say: Say
) -> Session:
    # A run goes on with the products that it began with, where its settings leave the choice to us.
    before = last_session(layout) if layout.checkpoint_steps() else {}
    machine = choose_machine(config.train, options.device, before, config.model)
    if machine.timed is not None:
        say(
            f"precision {'bf16' if machine.bf16 else 'fp32'}: forward and backward take about "
            f"{machine.timed.bf16_ms:.0f} ms in bf16 and {machine.timed.fp32_ms:.0f} ms in fp32"
        )
    keep_freed_memory()
    seed_everything(config.train.seed)
    model = BitNetTransformer(config.model).to(machine.device)
    formats = machine.gradient_dtype, machine.input_gradient, machine.weight_dtype
    model.set_product(machine.product, *formats, fused=machine.fused_blocks)
    optimizers = Optimizers(model, config.train.optimizer_config())
    scaling = LossScale(machine.device) if machine.fp16 else None
    return Session(layout, task, config, machine, model, optimizers, options, say, scaling, before)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch on all devices."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _train(session: Session, first: Checkpoint, status: Status) -> Ended:
    """Train until one attempt ends the run. The one after a divergence begins at an earlier checkpoint."""
    received: list[int] = []
    skips = read_skips(session.layout, first)
    with ExitStack() as closing:
        trackers = [
            closing.enter_context(open_tracker(name, session.layout, session.config.to_json()))
            for name in session.options.trackers
        ]
        closing.enter_context(noting_stop_signals(received))
        while True:
            try:
                return _attempt(session, first, skips, status, trackers, received)
            except Diverged as trouble:
                first = roll_back(session, trouble, skips)
                skips = read_skips(session.layout, first)
                status.write("running", first.step)


def _attempt(
    session: Session,
    first: Checkpoint,
    skips: Sequence[Skip],
    status: Status,
    trackers: Sequence[Listener],
    received: Sequence[int],
) -> Ended:
    """Train until the last update or a signal. Raises Diverged where the weights have to go back."""
    train, layout = session.config.train, session.layout
    report: StepReport | None = None
    with open_writers(layout, trackers) as writers:
        observers, checkpoints = observers_of(session, first, status, writers, skips)
        if not layout.checkpoint_steps():
            checkpoints.save(0, 0, None)

        steps = train_steps(
            session.model,
            session.paths.forward,
            session.task.source,
            session.optimizers,
            train,
            start_step=first.step,
            bf16=session.machine.bf16,
            scaling=session.scaling,
            skips=skips,
            fused_loss=session.paths.fused_loss,
        )
        for report in steps:
            status.step = report.step  # where the run was, should one of the observers fail
            for observer in observers:
                if report.step % observer.every == 0 or report.step == train.total_steps:
                    observer(report)
            if received:
                break

        # A signal that comes during the last update changes nothing: the run is done.
        if received and report is not None and report.step < train.total_steps:
            _save_before_leaving(session, checkpoints, report)
            status.write("stopped", report.step, signal.Signals(received[0]).name)
            return Ended(layout, "stopped", report.step, received[0])

    status.write("done", train.total_steps)
    return Ended(layout, "done", train.total_steps)


def _save_before_leaving(session: Session, checkpoints: Checkpoints, report: StepReport) -> None:
    """Save a checkpoint of the last finished update, or say that its weights are not finite."""
    if is_good(session.layout.checkpoint(report.step)):
        return
    try:
        checkpoints.save(report.step, report.tokens_seen, report.loss)
    except NotFiniteError as error:
        session.say(str(error))
