"""How a run begins, continues and ends: the lock, the resume, the loop with its observers.

What ends a run decides its status: `done` after the last update, `stopped` after a signal (with a checkpoint of the
last finished update), `failed` with the reason otherwise. A failed run never says done.
"""

from __future__ import annotations

import fcntl
import random
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import numpy as np
import torch

from bitnet.allocator import keep_freed_memory
from bitnet.data.stream import Batch
from bitnet.errors import CheckpointError, RunError
from bitnet.nn.transformer import BitNetTransformer
from bitnet.optim.optimizer import Optimizers
from bitnet.run.checkpoint import Checkpoint, load_checkpoint, load_weights, newest_good
from bitnet.run.frozen import load_frozen_set, save_frozen_set
from bitnet.run.layout import RunLayout, write_json
from bitnet.run.metrics import LineWriter, cut_back, read_lines
from bitnet.run.provenance import provenance
from bitnet.run.random_state import restore_random_states
from bitnet.train.alarms import Alarms
from bitnet.train.choose import StartOptions, choose_run, state_of
from bitnet.train.config import RunConfig
from bitnet.train.loop import Forward, StepReport, autocast, train_steps
from bitnet.train.machine import Machine, choose_machine, wants_compile
from bitnet.train.measurements import Evaluation, Probe, Samples
from bitnet.train.mirrors import open_mirror
from bitnet.train.observers import Checkpoints, Guard, LossAverage, Observer, Scalars, Status
from bitnet.train.progress import Progress
from bitnet.train.recipe import Experiment, Task

Say = Callable[[str], None]
State = Literal["done", "stopped", "already_done"]


@dataclass(frozen=True)
class Ended:
    """already_done: there was nothing left to do; signal: which one stopped it."""

    layout: RunLayout
    state: State
    step: int
    signal: int | None = None


@dataclass(frozen=True)
class Session:
    """Everything one training process works with."""

    layout: RunLayout
    task: Task
    config: RunConfig
    machine: Machine
    model: BitNetTransformer
    optimizers: Optimizers
    options: StartOptions
    say: Say


def describe(experiment: Experiment, variant: str, config: RunConfig, task: Task) -> dict[str, Any]:
    """The content of meta/config.json."""
    described = {"experiment": experiment.name, "variant": variant, **config.to_json()}
    if experiment.file is not None:
        described["experiment_file"] = experiment.file
    return {**described, "data": {**task.tokenizer.describe(), **described["data"]}}


def run_experiment(experiment: Experiment, variant: str, config: RunConfig, options: StartOptions, say: Say) -> Ended:
    """Train, or continue, or find that it is done. Raises BitnetError; status.json then says failed."""
    task = experiment.open(config)
    described = describe(experiment, variant, config, task)
    layout = choose_run(experiment.run_prefix(config), described, config, options)
    with exclusive(layout):
        if state_of(layout) == "done":
            return Ended(layout, "already_done", config.train.total_steps)
        status = Status(layout, config.train)
        try:
            return _run(layout, task, config, described, status, options, say)
        except BaseException as error:
            status.failed(f"{type(error).__name__}: {error}")
            if isinstance(error, OSError):
                raise RunError(
                    f"writing to {layout.root} failed ({error.strerror}); free some space and repeat the command to resume"
                ) from error
            raise


@contextmanager
def exclusive(layout: RunLayout) -> Iterator[None]:
    """Hold the run's lock; a lock left by a dead process never blocks, since the system drops it."""
    try:
        layout.root.mkdir(parents=True, exist_ok=True)
        file = layout.lock.open("a")
    except OSError as error:
        raise RunError(f"the runs folder {layout.root.parent} cannot be written ({error.strerror}); choose another --runs-dir") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(f"another process is training {layout.run_id}; wait for it or choose another --run-id") from None
        yield


def _run(
    layout: RunLayout, task: Task, config: RunConfig, described: dict[str, Any], status: Status, options: StartOptions, say: Say
) -> Ended:
    machine = choose_machine(config.train, options.device)
    keep_freed_memory()
    seed_everything(config.train.seed)
    model = BitNetTransformer(config.model).to(machine.device)
    model.set_product(machine.product, machine.gradient_dtype)
    optimizers = Optimizers(model, config.train.optimizer_config())
    session = Session(layout, task, config, machine, model, optimizers, options, say)
    begin = _resume(session) or _begin(session, described)
    status.write("running", begin.step)
    say(f"run {layout.root}" + (f", continuing after update {begin.step}" if begin.step else ""))
    return _train(session, begin, status)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch on all devices."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _resume(session: Session) -> Checkpoint | None:
    """Continue from the newest good checkpoint, if there is any."""
    layout, say = session.layout, session.say
    checkpoint = newest_good(layout, lambda problem: say(f"passing over a damaged checkpoint: {problem}"))
    if checkpoint is None:
        if layout.checkpoint_steps():
            raise CheckpointError(f"no checkpoint of {layout.run_id} is whole; begin anew under another --run-id (nothing was deleted)")
        return None
    load_weights(session.model, checkpoint)
    session.optimizers.load_state_tensors(checkpoint.optimizer)
    restore_random_states(checkpoint.state["rng_states"])
    for path in layout.line_files():
        cut_back(path, checkpoint.step)
    return checkpoint


def _begin(session: Session, described: dict[str, Any]) -> Checkpoint:
    """Write what a new run starts with."""
    layout, task, config, machine = session.layout, session.task, session.config, session.machine
    if config.train.start_from is not None:
        load_weights(session.model, load_checkpoint(Path(config.train.start_from), optimizer=False))
        session.say(f"beginning with the weights of {config.train.start_from}")
    for path in layout.line_files():
        cut_back(path, 0)
    facts = provenance(
        layout.run_id,
        config.train.seed,
        device=str(machine.device),
        product=machine.product,
        gradient_dtype=str(machine.gradient_dtype).removeprefix("torch."),
        compiled=wants_compile(config.train, machine.device),
    )
    task.tokenizer.save(layout.tokenizer)
    write_json(layout.provenance, facts)
    frozen = task.frozen_evaluation()
    rows = config.train.total_steps * config.train.batch_size * config.train.grad_accumulation_steps
    evaluation = {
        "expected_repetition_rate": task.source.epochs(rows),
        "evaluation_sequences": sum(len(batch.input_ids) for batch in frozen),
        "evaluation_sha256": save_frozen_set(layout, [batch.tensors() for batch in frozen]),
    }
    write_json(layout.fingerprint, {**task.source.fingerprint(), "tokenizer_vocab_size": task.tokenizer.vocab_size, **evaluation})
    write_json(layout.config, described)  # last: a folder is a run once it has this file
    return Checkpoint(0, {}, {}, {}, {})


def _train(session: Session, begin: Checkpoint, status: Status) -> Ended:
    with ExitStack() as closing:
        mirrors = [closing.enter_context(open_mirror(name, session.layout, session.config.to_json())) for name in session.options.mirrors]
        writers = [closing.enter_context(LineWriter(path, mirrors)) for path in session.layout.line_files()]
        return _updates(session, begin, status, writers)


def _updates(session: Session, begin: Checkpoint, status: Status, writers: Sequence[LineWriter]) -> Ended:
    """The loop with its observers, until the last update or a signal."""
    train, layout = session.config.train, session.layout
    observers, checkpoints = observers_of(session, begin, status, writers)
    if not layout.checkpoint_steps():
        checkpoints.save(0, 0, None)
    received: list[int] = []
    report: StepReport | None = None
    bf16 = session.machine.bf16
    steps = train_steps(
        session.model, forward_of(session), session.task.source, session.optimizers, train, start_step=begin.step, bf16=bf16
    )
    with stop_signals(received):
        for report in steps:
            for observer in observers:
                if report.step % observer.every == 0 or report.step == train.total_steps:
                    observer(report)
            if received:
                break
    if received and report is not None and report.step < train.total_steps:
        if not layout.checkpoint(report.step).is_dir():
            checkpoints.save(report.step, report.tokens_seen, report.loss)
        status.write("stopped", report.step, signal.Signals(received[0]).name)
        return Ended(layout, "stopped", report.step, received[0])
    status.write("done", train.total_steps)
    return Ended(layout, "done", train.total_steps)


def observers_of(session: Session, begin: Checkpoint, status: Status, writers: Sequence[LineWriter]) -> tuple[list[Observer], Checkpoints]:
    """In the order they run: samples before the alarms that read them, every metric line of a step before its checkpoint."""
    layout, task, model, train = session.layout, session.task, session.model, session.config.train
    scalars, probes, evaluations, samples = writers
    average = LossAverage()
    average.losses.extend(row["loss"] for row in read_lines(layout.scalars).rows if row.get("loss") is not None)
    sampler = Samples(samples, model, task, train)
    alarms = Alarms(layout, model, task, train, average, sampler, session.say)
    frozen = [Batch(**tensors) for tensors in load_frozen_set(layout)]
    probe = Probe(probes, model, train, frozen)
    probe.remember(begin.memory)
    checkpoints = Checkpoints(layout, model, session.optimizers, train, writers, probe.memory)
    observers: list[Observer] = [
        sampler,
        alarms,
        Scalars(scalars, session.config, session.machine.device, lambda: alarms.flag),
        average,
        Guard(),
        Progress(model, train, to_stderr=session.options.progress_to_stderr),
        probe,
        Evaluation(evaluations, model, task, train, average, frozen),
        status,
        checkpoints,
    ]
    return observers, checkpoints


def forward_of(session: Session) -> Forward:
    """The model, compiled where asked for and possible; a failure to compile is said and training goes on without."""
    config, machine, model = session.config.train, session.machine, session.model
    if not wants_compile(config, machine.device):
        return model
    session.say("compiling the model (torch.compile); the first update waits for it, about a minute on a CPU")
    compiled: Forward = torch.compile(model)
    try:
        rows = session.task.source.rows(np.arange(config.batch_size, dtype=np.int64)).to(machine.device)
        with autocast(machine.device, machine.bf16):
            compiled(rows.input_ids, **rows.context()).float().sum().backward()  # type: ignore[no-untyped-call]
    except Exception as error:  # noqa: BLE001 - compilers fail in many ways, and none of them is a reason not to train
        session.say(f"torch.compile failed ({type(error).__name__}: {str(error).splitlines()[0]}); going on without it")
        torch.compiler.reset()
        return model
    finally:
        session.optimizers.zero_grad()
    return compiled


@contextmanager
def stop_signals(received: list[int]) -> Iterator[None]:
    """Collect the first SIGINT or SIGTERM; a second one acts at once. Only the main thread may set handlers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for one, handler in before.items():
            signal.signal(one, handler)

    before = {one: signal.signal(one, note) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
