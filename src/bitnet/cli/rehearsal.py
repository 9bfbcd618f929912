"""Two short runs of a small model in a temporary folder, through the same door as `bitnet train`, one of them
stopped and resumed.

For `bitnet diagnose`: what an experiment's trainer writes, saves and restores is then looked at like any
run's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import random
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from bitnet.data.stream import Batch
    from bitnet.diagnose.subject import Rehearsal
    from bitnet.run.layout import RunLayout
    from bitnet.train.config import RunConfig
    from bitnet.train.experiment import Experiment, Task

REHEARSED, STOP = 4, 2  # updates of a rehearsal, and after how many it is interrupted
REHEARSED_ROWS = 2


class _RecordedRows:
    """The task's rows; notes which the loop reads, and sends SIGTERM while those of one update are read.

    in_loop: whether updates have begun; what is read before is for checks of the machine.
    """

    def __init__(self, inner: Any, stop_at_read: int | None) -> None:
        self.inner, self.stop_at_read = inner, stop_at_read
        self.asked: list[list[int]] = []
        self.in_loop = False

    def rows(self, numbers: NDArray[np.int64]) -> Batch:
        if not self.in_loop:
            early: Batch = self.inner.rows(numbers)
            return early
        self.asked.append(numbers.tolist())
        if len(self.asked) == self.stop_at_read:
            signal.raise_signal(signal.SIGTERM)
        draw()  # so that random states move on, and a resume that does not restore them shows
        batch: Batch = self.inner.rows(numbers)
        return batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def draw() -> None:
    """One number from every random generator of the process."""
    import numpy as np
    import torch

    random.random()
    np.random.rand()
    torch.rand(1)


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
    """Two short runs of a small model through the same door as `bitnet train`: one in one go, one stopped and
    resumed.
    """
    from bitnet.diagnose.subject import Rehearsal
    from bitnet.run.layout import RunLayout
    from bitnet.trained_model import load

    small = rehearsal_config(config)
    per_update = small.train.grad_accumulation_steps
    whole = _RehearsedTask(task, None)
    parts = [_RehearsedTask(task, STOP * per_update), _RehearsedTask(task, None)]
    before = signal.signal(
        signal.SIGTERM, lambda number, frame: None
    )  # should the trainer not catch it, nobody shall die of it
    try:
        _run(experiment, variant, small, whole, folder, "whole")
        for part in parts:
            _run(experiment, variant, small, part, folder, "parts")
            if part is parts[0]:
                go_on_unsaved(RunLayout(folder / "parts"))
        _run(
            experiment,
            variant,
            begun_from(small, RunLayout(folder / "whole")),
            _RehearsedTask(task, None),
            folder,
            "begun",
        )
        loaded = load("whole", runs_dir=folder)
    finally:
        signal.signal(signal.SIGTERM, before)

    def by_update(asked: Sequence[Sequence[int]]) -> list[list[int]]:
        return [
            [n for rows in asked[i : i + per_update] for n in rows] for i in range(0, len(asked), per_update)
        ]

    return Rehearsal(
        whole=RunLayout(folder / "whole"),
        parts=RunLayout(folder / "parts"),
        stop=STOP,
        weights=small.model.weights,
        training=small.to_json()["training"],
        begun=RunLayout(folder / "begun"),
        loaded_step=loaded.step,
        loaded=dict(loaded.model.named_parameters()),
        whole_rows=by_update(whole.source.asked),
        parts_rows=by_update([*parts[0].source.asked, *parts[1].source.asked]),
    )


def begun_from(config: RunConfig, layout: RunLayout) -> RunConfig:
    """One update that begins with the last weights of another run."""
    train = config.train.with_total_steps(1)
    return dataclasses.replace(
        config, train=dataclasses.replace(train, start_from=str(layout.checkpoint(REHEARSED)))
    )


def go_on_unsaved(layout: RunLayout) -> None:
    """Lines of updates after the last checkpoint, as a process leaves them that was killed; a resume has to
    cut them off.
    """
    for path in layout.line_files():
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        row = json.loads(lines[-1]) if lines else {}
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps({**row, "step": step}) + "\n" for step in (STOP + 1, STOP + 2))


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


def _run(
    experiment: Experiment, variant: str, config: RunConfig, task: _RehearsedTask, folder: Path, run_id: str
) -> None:
    from bitnet.train.choose import StartOptions
    from bitnet.train.device import choose_device
    from bitnet.train.start import run_experiment

    options = StartOptions(runs_dir=folder, run_id=run_id, device=choose_device("cpu"))
    as_task: Any = task
    rehearsed = dataclasses.replace(experiment, open=lambda _: as_task)
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        noting_the_loop(task.source),
    ):
        run_experiment(rehearsed, variant, config, options, lambda text: None)


@contextlib.contextmanager
def noting_the_loop(source: _RecordedRows) -> Iterator[None]:
    """Tell the rows when the loop begins, inside the block."""
    from bitnet.train import start

    trainer: Any = start
    original = trainer.train_steps

    def noted(*words: Any, **rest: Any) -> Iterator[Any]:
        source.in_loop = True
        yield from original(*words, **rest)

    trainer.train_steps = noted
    try:
        yield
    finally:
        trainer.train_steps = original
