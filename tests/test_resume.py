"""A run that was stopped, killed or cut off continues as if nothing had happened: bit for bit, through
`bitnet train`.
"""

from __future__ import annotations

import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bitnet.run.layout import RunLayout
from conftest import TINY_TRAIN, Result, after_update, run_command, terminate

RECIPES = {
    "adamw": ["--train.optimizer", "adamw", "--train.schedule", "two_stage", "--train.product", "float"],
    "muon": [
        *("--train.optimizer", "muon", "--train.product", "packed", "--train.input-gradient", "int8"),
        *("--train.grad-accumulation-steps", "2"),
    ],
}
TIMED = {"step_time_ms", "tokens_per_sec", "process_mem_gb", "mfu"}  # what hangs on the clock and the machine


def arguments(runs: Path, recipe: str, steps: int) -> list[str]:
    often = {"checkpoint": 4, "eval": 3, "probe": 3, "sample": 5}
    every = [f"--train.{what}-every={period * (1 if steps <= 10 else 8)}" for what, period in often.items()]
    return [
        *TINY_TRAIN,
        *RECIPES[recipe],
        *every,
        "--train.keep-last=2",
        f"--num-steps={steps}",
        "--run-id=one",
        f"--runs-dir={runs}",
    ]


def train(runs: Path, recipe: str, steps: int) -> Result:
    return run_command(*arguments(runs, recipe, steps))


def run_of(runs: Path) -> RunLayout:
    return RunLayout(runs / "one")


def status(runs: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(run_of(runs).status.read_text())
    return value


def outcome(runs: Path, steps: int) -> dict[str, Any]:
    """Everything a finished run determines: weights, optimizer state, random states, and every line of every
    file.
    """
    layout = run_of(runs)
    final = layout.checkpoint(steps)
    found: dict[str, Any] = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(final.glob("*.safetensors"))
    }
    assert {"model.safetensors", "optimizer.safetensors"} <= found.keys()
    found["rng"] = json.loads((final / "state.json").read_text())["rng_states"]
    for path in layout.line_files():
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        found[path.name] = [{key: value for key, value in row.items() if key not in TIMED} for row in rows]
    return found


def assert_complete(found: dict[str, Any], steps: int) -> None:
    """No gap and no repeat, neither in what is written at every update nor in what has a period."""
    assert [row["step"] for row in found["scalars.jsonl"]] == list(range(1, steps + 1))
    period = 3 if steps <= 10 else 24
    periodic = sorted({*range(period, steps + 1, period), steps})
    assert [row["step"] for row in found["eval_results.jsonl"]] == periodic
    assert [row["step"] for row in found["quantization.jsonl"]] == periodic
    samples = [(row["step"], row["prompt"], row["mode"]) for row in found["samples.jsonl"]]
    assert len(samples) == len(set(samples))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], dict[str, Any]]:
    """The outcome of a run that nothing interrupts, trained once per recipe and length."""
    done: dict[tuple[str, int], dict[str, Any]] = {}

    def of(recipe: str, steps: int) -> dict[str, Any]:
        if (recipe, steps) not in done:
            runs = tmp_path_factory.mktemp(f"whole_{recipe}_{steps}")
            assert train(runs, recipe, steps).code == 0
            done[recipe, steps] = outcome(runs, steps)
            assert_complete(done[recipe, steps], steps)
        return done[recipe, steps]

    return of


@pytest.mark.slow
@pytest.mark.parametrize("stopper", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("recipe", RECIPES)
def test_five_updates_and_five_more_are_ten(
    recipe: str, stopper: signal.Signals, tmp_path: Path, whole: Any
) -> None:
    """Stopped by a signal after update 5, which gets a checkpoint; the same command then goes on to 10."""
    with after_update(5, lambda: signal.raise_signal(stopper)):
        stopped = train(tmp_path, recipe, 10)
    assert stopped.code == 128 + stopper
    assert (status(tmp_path)["state"], status(tmp_path)["why"], status(tmp_path)["step"]) == (
        "stopped",
        stopper.name,
        5,
    )
    assert run_of(tmp_path).checkpoint_steps()[-1] == 5
    resumed = train(tmp_path, recipe, 10)
    assert resumed.code == 0
    assert "continuing after update 5" in resumed.out
    assert outcome(tmp_path, 10) == whole(recipe, 10)
    assert status(tmp_path)["state"] == "done"


def test_a_stop_at_the_last_update_is_a_finished_run(tmp_path: Path, whole: Any) -> None:
    with after_update(10, terminate):
        assert train(tmp_path, "adamw", 10).code == 0
    assert status(tmp_path)["state"] == "done"
    assert outcome(tmp_path, 10) == whole("adamw", 10)


@pytest.mark.slow
@pytest.mark.parametrize("step", [3, 6, 9])
def test_a_crash_between_checkpoints_costs_only_the_updates_since(
    step: int, tmp_path: Path, whole: Any
) -> None:
    """The state says failed and why; metrics that ran ahead of the newest checkpoint are cut back, then
    written again.
    """

    def crash() -> None:
        raise ZeroDivisionError("the test's crash")

    with after_update(step, crash), pytest.raises(ZeroDivisionError):
        train(tmp_path, "muon", 10)
    assert (status(tmp_path)["state"], status(tmp_path)["why"]) == (
        "failed",
        "ZeroDivisionError: the test's crash",
    )
    resumed = train(tmp_path, "muon", 10)
    assert resumed.code == 0
    assert outcome(tmp_path, 10) == whole("muon", 10)


@pytest.mark.slow
def test_a_half_written_line_and_a_damaged_checkpoint_are_survived_together(
    tmp_path: Path, whole: Any
) -> None:
    """What a power cut leaves: the newest checkpoint is bad, so one before it is taken, and that is said."""
    with after_update(9, terminate):
        train(tmp_path, "adamw", 10)
    layout = run_of(tmp_path)
    with (layout.checkpoint(9) / "optimizer.safetensors").open("r+b") as file:
        file.truncate(100)
    for path in layout.line_files():
        with path.open("a") as file:
            file.write('{"step": 9, "loss": 1.2')
    resumed = train(tmp_path, "adamw", 10)
    assert resumed.code == 0
    assert "damaged checkpoint" in resumed.out
    assert "step_000009" in resumed.out
    assert "continuing after update 8" in resumed.out
    assert outcome(tmp_path, 10) == whole("adamw", 10)


def line_count(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_kill_at_a_random_moment_loses_nothing(recipe: str, tmp_path: Path, whole: Any) -> None:
    """SIGKILL, which no program can prepare for, somewhere in the first fifty of 120 updates of a real
    process.
    """
    moment = random.SystemRandom().randint(1, 50)
    command = [sys.executable, "-m", "bitnet", *arguments(tmp_path, recipe, 120)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        while process.poll() is None and line_count(run_of(tmp_path).scalars) < moment:
            time.sleep(0.001)
    finally:
        process.kill()
    _, error = process.communicate()
    assert process.returncode == -signal.SIGKILL, error.decode()
    assert run_command("status", "one", "--runs-dir", tmp_path, "--json").json["state"] == "killed"
    resumed = train(tmp_path, recipe, 120)
    assert resumed.code == 0, f"killed after {moment} lines"
    assert outcome(tmp_path, 120) == whole(recipe, 120), f"killed after {moment} lines"


@pytest.mark.slow
def test_a_process_has_as_many_threads_as_what_it_is_compared_with() -> None:
    """A run of two threads was once compared with one of a single thread: entropies differed by 1e-7."""
    check = "import torch; print(torch.get_num_threads())"
    started = subprocess.run([sys.executable, "-c", check], check=True, capture_output=True, text=True)
    assert int(started.stdout) == torch.get_num_threads()


@pytest.mark.slow
def test_a_kill_inside_the_writing_of_a_checkpoint_leaves_none(tmp_path: Path, whole: Any) -> None:
    """Its folder appears by one rename, so what is half-written is never taken for a checkpoint, and is swept
    away.
    """
    script = """
import os, signal, sys
import safetensors.torch
real = safetensors.torch.save_file
def save_file(tensors, path):
    if "step_000008" in str(path) and "optimizer" in str(path):
        os.kill(os.getpid(), signal.SIGKILL)
    real(tensors, path)
safetensors.torch.save_file = save_file
from bitnet.cli.main import main
main(sys.argv[1:])
"""
    ended = subprocess.run(
        [sys.executable, "-c", script, *arguments(tmp_path, "adamw", 10)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    layout = run_of(tmp_path)
    assert layout.checkpoint_steps() == [0, 4, 5]
    assert any(path.name.startswith(".step_000008") for path in layout.checkpoints.iterdir())
    assert "continuing after update 5" in train(tmp_path, "adamw", 10).out
    assert outcome(tmp_path, 10) == whole("adamw", 10)
    assert sorted(path.name for path in layout.checkpoints.iterdir()) == [
        f"step_{step:06d}" for step in (0, 4, 5, 8, 10)
    ]
