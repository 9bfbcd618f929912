"""Mirrors get what the run directory gets."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bitnet.run.metrics import read_lines
from conftest import TINY_TRAIN, Command


def test_tensorboard_holds_the_losses_of_the_run(bitnet: Command, tmp_path: Path) -> None:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is an extra"
    )
    assert (
        bitnet(
            *TINY_TRAIN, "--runs-dir", tmp_path, "--run-id", "r", "--num-steps", 3, "--mirror", "tensorboard"
        ).code
        == 0
    )
    events = accumulator.EventAccumulator(str(tmp_path / "r" / "tensorboard")).Reload()
    rows = read_lines(tmp_path / "r" / "metrics" / "scalars.jsonl").rows
    assert [point.value for point in events.Scalars("scalars/loss")] == pytest.approx(
        [row["loss"] for row in rows]
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_loggers_are_started_once_and_told_every_row(
    name: str, bitnet: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[dict[str, Any]] = []
    finished: list[str] = []
    logged: list[tuple[int, dict[str, float]]] = []

    def init(**settings: Any) -> Any:
        started.append(settings)
        return SimpleNamespace(
            log=lambda values, step: logged.append((step, values)), finish=lambda: finished.append(name)
        )

    monkeypatch.setitem(sys.modules, name, SimpleNamespace(init=init))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert (
        bitnet(*TINY_TRAIN, "--runs-dir", tmp_path, "--run-id", "r", "--num-steps", 3, "--mirror", name).code
        == 0
    )
    assert len(started) == 1
    assert finished == [name]
    assert started[0]["name"] == "r"
    assert started[0].get("mode") == ("offline" if name == "wandb" else None)
    rows = read_lines(tmp_path / "r" / "metrics" / "scalars.jsonl").rows
    assert [values["scalars/loss"] for _, values in logged if "scalars/loss" in values] == [
        row["loss"] for row in rows
    ]


def test_missing_extra_says_which(bitnet: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    result = bitnet(*TINY_TRAIN, "--runs-dir", tmp_path, "--num-steps", 3, "--mirror", "trackio")
    assert result.code == 2
    assert "bitnet[trackio]" in result.err
