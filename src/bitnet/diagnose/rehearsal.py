"""Rehearsal: short runs of a small model in a temporary folder, by the function that `bitnet train` calls.

One run is made in one go, one is stopped by a signal and resumed, and one begins with another's weights. What
the experiment's trainer writes, saves and restores can then be examined like any run. Not here: the checks
on these runs (check_rehearsal.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import random
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitnet.data.stream import Batch, RowSource
from bitnet.diagnose.subject import Subject
from bitnet.nn.transformer import BitNetTransformer
from bitnet.run.layout import RunLayout
from bitnet.train import start
from bitnet.train.config import RunConfig
from bitnet.train.device import choose_device
from bitnet.train.experiment import Task
from bitnet.train.loop import StepReport
from bitnet.train.session import StartOptions
from bitnet.trained_model import load

REHEARSED, STOP = 4, 2  # updates of a rehearsal, and after how many it is interrupted
REHEARSED_ROWS = 2


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """Two runs of REHEARSED updates: `whole` in one go, `parts` stopped after STOP updates and resumed."""

    settings: RunConfig
    """The settings of both."""
    whole: RunLayout
    parts: RunLayout
    begun: RunLayout
    """A third run, of one update, that begins with the last weights of `whole`."""
    loaded_step: int
    """The checkpoint of `whole` that `bitnet.load` takes, and its weights."""
    loaded: Mapping[str, Tensor]
    whole_rows: Sequence[Sequence[int]]
    """The row numbers that each update read, in order."""
    parts_rows: Sequence[Sequence[int]]


def rehearse(subject: Subject, folder: Path) -> Rehearsal:
    """Make the runs in a folder. Only the main thread may, since a run answers signals."""
    small = rehearsal_config(subject.settings)
    whole, layout = _RehearsedTask(subject.task), RunLayout(folder / "whole")
    # the stop comes while the rows of update STOP are read, so that the run ends after that update
    parts = [
        _RehearsedTask(subject.task, STOP * small.train.grad_accumulation_steps),
        _RehearsedTask(subject.task),
    ]

    with surviving_sigterm():
        _run(subject, small, whole, folder, "whole")
        _run(subject, small, parts[0], folder, "parts")
        add_unsaved_lines(RunLayout(folder / "parts"))
        _run(subject, small, parts[1], folder, "parts")
        _run(subject, begun_from(small, layout), _RehearsedTask(subject.task), folder, "begun")
        loaded = load("whole", runs_dir=folder, engine="torch")
    assert isinstance(loaded.model, BitNetTransformer)

    read_in_parts = [*parts[0].source.asked, *parts[1].source.asked]
    return Rehearsal(
        settings=small,
        whole=layout,
        parts=RunLayout(folder / "parts"),
        begun=RunLayout(folder / "begun"),
        loaded_step=loaded.step,
        loaded=dict(loaded.model.named_parameters()),
        whole_rows=by_update(whole.source.asked, small.train.grad_accumulation_steps),
        parts_rows=by_update(read_in_parts, small.train.grad_accumulation_steps),
    )


def rehearsal_config(config: RunConfig) -> RunConfig:
    """The same settings around a model of two narrow layers, in REHEARSED updates of a few rows."""
    model, train = config.model, config.train.with_total_steps(REHEARSED)
    grouped = 1 if model.num_kv_heads < model.num_heads else 2
    small = dataclasses.replace(
        model, hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=grouped, ffn_hidden_size=48
    )
    train = dataclasses.replace(
        train,
        batch_size=2,
        grad_accumulation_steps=min(train.grad_accumulation_steps, 2),
        log_every=1,
        eval_every=STOP,
        sample_every=REHEARSED,
        probe_every=REHEARSED - 1,
        checkpoint_every=STOP,
        keep_last=REHEARSED,
        compile="off",
        start_from=None,
    )
    return dataclasses.replace(config, model=small, train=train)


def begun_from(config: RunConfig, layout: RunLayout) -> RunConfig:
    """One update that begins with the last weights of another rehearsed run."""
    train = config.train.with_total_steps(1)
    return dataclasses.replace(
        config, train=dataclasses.replace(train, start_from=str(layout.checkpoint(REHEARSED)))
    )


def add_unsaved_lines(layout: RunLayout) -> None:
    """Append lines of updates after the last checkpoint, as a killed process leaves them; a resume has to cut
    them off.
    """
    for path in layout.line_files():
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        row = json.loads(lines[-1]) if lines else {}
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps({**row, "step": step}) + "\n" for step in (STOP + 1, STOP + 2))


def by_update(asked: Sequence[Sequence[int]], micro_batches: int) -> list[list[int]]:
    """The row numbers of each update, from those of each micro-batch."""
    return [
        [number for rows in asked[begin : begin + micro_batches] for number in rows]
        for begin in range(0, len(asked), micro_batches)
    ]


@contextlib.contextmanager
def surviving_sigterm() -> Iterator[None]:
    """Inside the block SIGTERM does not end the process, should the trainer fail to catch it."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _RecordedRows:
    """The task's rows, with a record of what the loop reads. Sends SIGTERM at the read with number
    `stop_at_read`.
    """

    def __init__(self, inner: RowSource, stop_at_read: int | None) -> None:
        self.inner, self.stop_at_read = inner, stop_at_read
        self.asked: list[list[int]] = []
        self.in_loop = False
        """Whether updates have begun; rows read before are for trials of the machine."""

    def rows(self, numbers: NDArray[np.int64]) -> Batch:
        if self.in_loop:
            self.asked.append(numbers.tolist())
            if len(self.asked) == self.stop_at_read:
                signal.raise_signal(signal.SIGTERM)
            draw()
        return self.inner.rows(numbers)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def draw() -> None:
    """Take one number from every random generator of the process, so that a resume that does not restore
    their states can be seen.
    """
    random.random()
    np.random.rand()
    torch.rand(1)


class _RehearsedTask:
    """The task with recorded rows, and with few rows to evaluate and few cases to judge."""

    def __init__(self, task: Task, stop_at_read: int | None = None) -> None:
        self.task, self.source = task, _RecordedRows(task.source, stop_at_read)
        self.prompts = list(task.prompts)[:1]

    def frozen_evaluation(self) -> list[Batch]:
        return [self.task.frozen_evaluation()[0].select(slice(REHEARSED_ROWS))]

    def judge(self, model: BitNetTransformer, limit: int | None = None) -> dict[str, float]:
        return self.task.judge(model, REHEARSED_ROWS)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)


def _run(subject: Subject, config: RunConfig, task: _RehearsedTask, folder: Path, run_id: str) -> None:
    """Begin a run of this id, or continue it, without a word on the terminal."""
    options = StartOptions(runs_dir=folder, run_id=run_id, device=choose_device("cpu"))
    rehearsed = dataclasses.replace(subject.experiment, open=lambda _: cast(Task, task))
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        noting_the_loop(task.source),
    ):
        start.run_experiment(rehearsed, subject.variant, config, options, lambda text: None)


@contextlib.contextmanager
def noting_the_loop(source: _RecordedRows) -> Iterator[None]:
    """Inside the block the rows are told when the loop begins."""
    trainer: Any = start
    original = trainer.train_steps

    def noted(*words: Any, **rest: Any) -> Iterator[StepReport]:
        source.in_loop = True
        yield from original(*words, **rest)

    trainer.train_steps = noted
    try:
        yield
    finally:
        trainer.train_steps = original
