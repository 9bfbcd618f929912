"""`bitnet diagnose NAME|RUN`: which part is broken? The decision tree on a fresh model of an experiment, or on a run."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from bitnet.cli.catalogue import config_of_run, experiment_names, find_variant
from bitnet.cli.flags import RunFlags, parse
from bitnet.errors import NotFoundError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from bitnet.data.stream import Batch
    from bitnet.diagnose.subject import Rehearsal, Subject
    from bitnet.nn.transformer import BitNetTransformer
    from bitnet.run.checkpoint import Checkpoint
    from bitnet.run.layout import RunLayout
    from bitnet.train.config import RunConfig
    from bitnet.train.recipe import Experiment, Task

REHEARSED, STOP = 4, 2  # updates of a rehearsal, and after how many it is interrupted
REHEARSED_ROWS = 2


@dataclass(frozen=True, kw_only=True)
class DiagnoseFlags(RunFlags):
    """Flags of `bitnet diagnose`. With an experiment's name, those of `bitnet train` that change its configuration too."""

    name: Positional[str]
    """An experiment (a fresh model of it is examined), or a run: id, directory, checkpoint, or latest."""
    variant: str | None = None
    """Which variant of the experiment."""
    full: bool = False
    """Also the slow checks: one batch learned to near zero, and the control with full-precision weights."""
    device: str = "auto"
    """auto, cpu or cuda."""


def main(arguments: Sequence[str]) -> int:
    """Print the page; 0 where nothing is suspected, 1 where a part is."""
    full, words = "--full" in arguments, [word for word in arguments if word != "--full"]
    named = experiment_word(words)
    subject = (
        of_experiment(named, [word for word in words if word != named], full)
        if named
        else of_run(parse(DiagnoseFlags, arguments, "diagnose"))
    )
    from bitnet.diagnose.examine import examine
    from bitnet.diagnose.page import page
    from bitnet.diagnose.verdict import judge
    from bitnet.run.layout import write_json
    from bitnet.run.metrics import finite

    in_json = "--json" in arguments
    checks = []
    for check in examine(subject):
        checks.append(check)
        if sys.stderr.isatty():
            print(f"\r{len(checks)} checks, last: {check.name[:60]:<60}", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print("\r" + " " * 90 + "\r", end="", file=sys.stderr)
    verdict = judge(checks)
    print(page(subject.name, checks, verdict), file=sys.stderr if in_json else sys.stdout)
    result = finite({"name": subject.name, "step": subject.step, **verdict.to_json(), "checks": [check.to_json() for check in checks]})
    if subject.layout is not None:
        with contextlib.suppress(OSError):  # a run that may only be read can be diagnosed all the same
            write_json(subject.layout.diagnosis, result)
    if in_json:
        print(json.dumps(result))
    return 0 if verdict.healthy else 1


def experiment_word(words: Sequence[str]) -> str | None:
    """The experiment that is meant, if one is: its name or its file, not the value of a flag."""
    names = experiment_names()
    for before, word in zip(["", *words], words, strict=False):
        is_value = before.startswith("--") and "=" not in before and before != "--json"
        if not is_value and (word in names or word.endswith(".py")):
            return word
    return None


def of_experiment(name: str, flags: Sequence[str], full: bool) -> Subject:
    """A fresh model of an experiment and its data."""
    from bitnet.cli.train import make_data_ready, resolve
    from bitnet.train.machine import choose_device

    if {"-h", "--help"} & set(flags):
        parse(DiagnoseFlags, ["--help"], "diagnose")
    experiment, variant, options, config = resolve([name, *flags])
    make_data_ready(experiment, config, lambda text: print(text, file=sys.stderr, flush=True))
    return _subject(f"{experiment.name} ({variant}), a fresh model", experiment, variant, config, choose_device(options.device), full=full)


def of_run(flags: DiagnoseFlags) -> Subject:
    """A run with its checkpoint and its files."""
    from bitnet.run.checkpoint import load_checkpoint, newest_good
    from bitnet.run.layout import find_run
    from bitnet.train.machine import choose_device

    if flags.variant is not None:
        raise NotFoundError(f"there is no experiment {flags.name!r}, and --variant belongs to experiments; leave it out for a run")
    reference = find_run(flags.name, flags.runs_dir)
    experiment, variant, config = config_of_run(reference.layout)
    damaged: list[str] = []
    if reference.step is None:
        checkpoint = newest_good(reference.layout, damaged.append, optimizer=False)
    else:
        checkpoint = load_checkpoint(reference.layout.checkpoint(reference.step), optimizer=False)
    return _subject(
        reference.layout.run_id, experiment, variant, config, choose_device(flags.device), full=flags.full,
        layout=reference.layout, checkpoint=checkpoint, damaged=damaged,
    )  # fmt: skip


def _subject(
    name: str,
    experiment: Experiment,
    variant: str,
    config: RunConfig,
    device: Any,
    *,
    full: bool,
    layout: RunLayout | None = None,
    checkpoint: Checkpoint | None = None,
    damaged: Sequence[str] = (),
) -> Subject:
    """Everything as training would get it, handed over as values."""
    from bitnet.diagnose.subject import Subject
    from bitnet.run.checkpoint import load_weights
    from bitnet.run.layout import RunLayout
    from bitnet.train import start
    from bitnet.train.machine import choose_machine
    from bitnet.trained import TrainedModel

    machine = choose_machine(config.train, device)
    trainer: Any = start  # under the names by which training itself calls them

    def new_model(shape: Any) -> BitNetTransformer:
        start.seed_everything(config.train.seed)
        model: BitNetTransformer = trainer.BitNetTransformer(shape).to(machine.device)
        model.set_product(machine.product if "full" not in (shape.weights, shape.activations) else "float", machine.gradient_dtype)
        return model

    def train(
        model: Any, optimizers: Any, source: Any, *, start_step: int = 0, num_steps: int | None = None, **changes: Any
    ) -> Iterator[Any]:
        settings = config.train if num_steps is None else config.train.with_total_steps(num_steps)
        settings = dataclasses.replace(settings, **changes)
        steps: Iterator[Any] = trainer.train_steps(model, model, source, optimizers, settings, start_step=start_step, bf16=machine.bf16)
        return steps

    task = experiment.open(config)
    model = new_model(config.model)
    if checkpoint is not None:
        load_weights(model, checkpoint)

    def complete(tokenizer: Any, prompt: str, count: int) -> str:
        return TrainedModel(layout or RunLayout(Path()), 0, model, tokenizer).complete(prompt, max_new_tokens=count, stop=None)

    declared = find_variant(experiment, variant)
    in_main_thread = threading.current_thread() is threading.main_thread()
    return Subject(
        name=name, config=config.model, training=config.to_json()["training"], task=task, model=model, new_model=new_model,
        new_optimizers=lambda model: trainer.Optimizers(model, config.train.optimizer_config()), train=train,
        complete=complete, rates_at=lambda step: config.train.rates().rates_at(step),
        rehearse=(lambda folder: rehearse(experiment, variant, config, task, folder)) if in_main_thread else None,
        criteria=declared.criteria, planned_tokens=declared.config.train.total_tokens, layout=layout,
        step=checkpoint.step if checkpoint else 0, damaged=damaged, bf16=machine.bf16, full=full,
    )  # fmt: skip


class _RecordedRows:
    """The task's rows; notes which were read, and sends SIGTERM while those of one update are read."""

    def __init__(self, inner: Any, stop_at_read: int | None) -> None:
        self.inner, self.stop_at_read = inner, stop_at_read
        self.asked: list[list[int]] = []

    def rows(self, numbers: NDArray[np.int64]) -> Batch:
        self.asked.append(numbers.tolist())
        if len(self.asked) == self.stop_at_read:
            signal.raise_signal(signal.SIGTERM)
        batch: Batch = self.inner.rows(numbers)
        return batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class _RehearsedTask:
    """The task with few rows to evaluate and few cases to judge."""

    def __init__(self, task: Task, stop_at_read: int | None) -> None:
        self.task, self.source = task, _RecordedRows(task.source, stop_at_read)
        self.prompts = list(task.prompts)[:1]

    def frozen_evaluation(self) -> list[Any]:
        return [self.task.frozen_evaluation()[0].select(slice(REHEARSED_ROWS))]

    def judge(self, model: Any, limit: int | None = None) -> dict[str, float]:
        return self.task.judge(model, REHEARSED_ROWS)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)


def rehearse(experiment: Experiment, variant: str, config: RunConfig, task: Task, folder: Path) -> Rehearsal:
    """Two short runs of a small model through the same door as `bitnet train`: one in one go, one stopped and resumed."""
    from bitnet.diagnose.subject import Rehearsal
    from bitnet.run.layout import RunLayout

    small = rehearsal_config(config)
    per_update = small.train.grad_accumulation_steps
    whole = _RehearsedTask(task, None)
    parts = [_RehearsedTask(task, STOP * per_update), _RehearsedTask(task, None)]
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)  # should the trainer not catch it, nobody shall die of it
    try:
        _run(experiment, variant, small, whole, folder, "whole")
        for part in parts:
            _run(experiment, variant, small, part, folder, "parts")
    finally:
        signal.signal(signal.SIGTERM, before)

    def by_update(asked: Sequence[Sequence[int]]) -> list[list[int]]:
        return [[n for rows in asked[i : i + per_update] for n in rows] for i in range(0, len(asked), per_update)]

    return Rehearsal(
        whole=RunLayout(folder / "whole"), parts=RunLayout(folder / "parts"), stop=STOP, training=small.to_json()["training"],
        whole_rows=by_update(whole.source.asked), parts_rows=by_update([*parts[0].source.asked, *parts[1].source.asked]),
    )  # fmt: skip


def rehearsal_config(config: RunConfig) -> RunConfig:
    """The same settings around a model of two narrow layers, in REHEARSED updates of a few rows."""
    model, train = config.model, config.train.with_total_steps(REHEARSED)
    grouped = 1 if model.num_kv_heads < model.num_heads else 2
    small = dataclasses.replace(model, hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=grouped, ffn_hidden_size=48)
    train = dataclasses.replace(
        train, batch_size=2, grad_accumulation_steps=min(train.grad_accumulation_steps, 2), log_every=1, eval_every=STOP,
        sample_every=REHEARSED, probe_every=1, checkpoint_every=STOP, keep_last=REHEARSED, compile="off", start_from=None,
    )  # fmt: skip
    return dataclasses.replace(config, model=small, train=train)


def _run(experiment: Experiment, variant: str, config: RunConfig, task: _RehearsedTask, folder: Path, run_id: str) -> None:
    from bitnet.train.choose import StartOptions
    from bitnet.train.machine import choose_device
    from bitnet.train.start import run_experiment

    options = StartOptions(runs_dir=folder, run_id=run_id, device=choose_device("cpu"))
    as_task: Any = task
    rehearsed = dataclasses.replace(experiment, open=lambda _: as_task)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        run_experiment(rehearsed, variant, config, options, lambda text: None)
