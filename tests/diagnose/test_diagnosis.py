"""What is still to be done of a run, and that an examination survives what is broken or may only be read."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bitnet.diagnose import diagnosis
from bitnet.diagnose.diagnosis import diagnose, shown_rows, threads_for, unfinished
from bitnet.diagnose.finding import Part
from bitnet.experiments.arithmetic import QUICK
from bitnet.run.layout import RunLayout

CHECKS = [Part("data", "here")("rows differ", "they do not").holds(True, 1, "1")]


def subject(**changes: Any) -> Any:
    settings = dataclasses.replace(QUICK, train=dataclasses.replace(QUICK.train, total_steps=100))
    facts: dict[str, Any] = {
        "name": "one",
        "step": 100,
        "settings": settings,
        "layout": None,
        "planned_tokens": settings.train.total_tokens,
        "device": torch.device("cpu"),
        "config": settings.model,
    }
    return SimpleNamespace(**{**facts, **changes})


def test_what_is_unfinished() -> None:
    run: Any = object()
    assert unfinished(subject()) is None, "an experiment has nothing to finish"
    assert unfinished(subject(layout=run)) is None
    assert unfinished(subject(layout=run, step=40)) == "40 of 100 updates"
    planned = 3 * subject().settings.train.total_tokens
    told = unfinished(subject(layout=run, planned_tokens=planned))
    assert told is not None
    assert told.endswith(f"of the {planned:,} tokens that its variant plans")


def test_rows_that_cannot_be_read_are_no_crash() -> None:
    (line,) = shown_rows(subject(training={}, task=None))
    assert line.startswith("cannot be shown: ")


def test_a_small_model_on_a_cpu_has_one_thread_inside_the_block_only() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with threads_for(subject()):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        with threads_for(subject(config=SimpleNamespace(total_params=10**9))):
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_run_keeps_its_diagnosis_where_it_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diagnosis, "examine", lambda subject: iter(CHECKS))
    seen: list[tuple[int, str]] = []
    layout = RunLayout(tmp_path)
    layout.diagnosis.parent.mkdir()
    found = diagnose(subject(layout=layout), lambda number, check: seen.append((number, check.name)))
    assert seen == [(1, "rows differ")]
    assert json.loads(layout.diagnosis.read_text()) == json.loads(json.dumps(found.to_json()))

    def refuse(path: Path, content: Any) -> None:
        raise PermissionError(path)

    monkeypatch.setattr(diagnosis, "write_json", refuse)
    assert diagnose(subject(layout=layout), lambda number, check: None).verdict.healthy
