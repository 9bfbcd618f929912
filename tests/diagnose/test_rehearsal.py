"""What a rehearsal changes of the settings, what it leaves behind, and what it records."""

from __future__ import annotations

import json
import random
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from bitnet.diagnose.rehearsal import (
    STOP,
    _RecordedRows,
    add_unsaved_lines,
    begun_from,
    by_update,
    rehearsal_config,
    surviving_sigterm,
)
from bitnet.experiments.arithmetic import QUICK, REFERENCE
from bitnet.run.layout import RunLayout


def test_a_rehearsal_keeps_what_is_being_rehearsed() -> None:
    """Only sizes and periods change: not the optimizer, the schedule, the numerics or the vocabulary."""
    for config in (QUICK, REFERENCE):
        small = rehearsal_config(config)
        assert small.data == config.data
        for field in ("optimizer", "schedule", "peak_lr", "seed", "stage1_wd", "grad_clip_norm"):
            assert getattr(small.train, field) == getattr(config.train, field)
        for field in (
            "weights",
            "activations",
            "vocab_size",
            "sub_norm",
            "activation",
            "embeddings_tied",
            "max_seq_length",
        ):
            assert getattr(small.model, field) == getattr(config.model, field)


def test_the_run_that_begins_with_another_makes_one_update(tmp_path: Path) -> None:
    small = rehearsal_config(QUICK)
    begun = begun_from(small, RunLayout(tmp_path))
    assert begun.train.total_steps == 1
    assert begun.train.start_from == str(RunLayout(tmp_path).checkpoint(small.train.total_steps))
    assert begun.model == small.model


def test_rows_are_recorded_in_the_loop_only_and_the_signal_comes_with_its_read() -> None:
    inner: Any = SimpleNamespace(rows=lambda numbers: numbers.sum(), fingerprint=lambda: {"rows": 7})
    rows = _RecordedRows(inner, stop_at_read=2)
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        rows.rows(np.array([9]))
        rows.in_loop = True
        assert rows.rows(np.array([0, 1])) == 1
        assert received == []
        rows.rows(np.array([2, 3]))
        assert received == [signal.SIGTERM]
        rows.rows(np.array([4, 5]))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert rows.asked == [[0, 1], [2, 3], [4, 5]]
    assert received == [signal.SIGTERM], "once"
    assert rows.fingerprint() == {"rows": 7}


def test_reading_in_the_loop_moves_the_random_state() -> None:
    inner: Any = SimpleNamespace(rows=lambda numbers: None)
    rows = _RecordedRows(inner, None)
    state = random.getstate()
    rows.rows(np.array([0]))
    assert random.getstate() == state
    rows.in_loop = True
    rows.rows(np.array([0]))
    assert random.getstate() != state


def test_micro_batches_are_joined_to_updates() -> None:
    assert by_update([[0, 1], [2, 3], [4, 5], [6, 7]], 2) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert by_update([[0], [1]], 1) == [[0], [1]]


def test_lines_after_the_last_checkpoint_are_added_to_every_file(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path)
    for path in layout.line_files():
        path.parent.mkdir(exist_ok=True)
    layout.scalars.write_text('{"step": 2, "loss": 1.5}\n')
    add_unsaved_lines(layout)
    written = [json.loads(line) for line in layout.scalars.read_text().splitlines()]
    assert [row["step"] for row in written] == [2, STOP + 1, STOP + 2]
    assert written[-1]["loss"] == 1.5
    assert all(path.is_file() for path in layout.line_files()), "also where nothing was written yet"


def test_sigterm_ends_nothing_during_a_rehearsal() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with surviving_sigterm():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
