"""Which tensors of two checkpoints differ, and what a run's folder says of its checkpoints."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bitnet.diagnose import check_checkpoints
from bitnet.diagnose.check_checkpoints import different
from bitnet.run import checkpoint as checkpoints
from bitnet.run.layout import RunLayout


def test_tensors_that_differ_are_named() -> None:
    one = {"a": torch.zeros(2), "b": torch.ones(2), "c": torch.ones(1)}
    other = {"a": torch.zeros(2), "b": torch.tensor([1.0, 1.0 + 1e-6]), "d": torch.ones(1)}
    assert different(one, one) == []
    assert different(one, other) == ["b", "c", "d"], "one changed by a bit, two that only one of them has"


@pytest.mark.parametrize(
    ("named", "step", "newest", "ok"),
    [(False, 8, 8, True), (False, 4, 8, False), (True, 4, 8, True), (True, 4, 4, False)],
)
def test_the_newest_checkpoint_is_examined_and_resumed(
    named: bool, step: int, newest: int, ok: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the user named an older one, only what a resume takes is looked at."""
    found = SimpleNamespace(step=newest)
    monkeypatch.setattr(checkpoints, "newest_good", lambda layout, say, optimizer: found)
    subject: Any = SimpleNamespace(step=step, step_named=named)
    layout: Any = SimpleNamespace(checkpoint_steps=lambda: [0, 4, 8], root=tmp_path)
    assert check_checkpoints.newest(subject, layout).ok is ok


def test_a_run_without_a_checkpoint_is_not_whole(tmp_path: Path) -> None:
    subject: Any = SimpleNamespace(damaged=["step_000004 is cut short"])
    found = check_checkpoints.whole_checkpoints(subject, RunLayout(tmp_path))
    assert not found.ok
    assert found.value == 1
    assert found.detail == "step_000004 is cut short"
    subject.damaged = []
    assert check_checkpoints.whole_checkpoints(subject, RunLayout(tmp_path)).detail == "there is none"
