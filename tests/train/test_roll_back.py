"""Values that are not finite: never applied; three in a row roll back and skip that data; a second time the
run stops.
"""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import bitnet.train.loop as loop
import bitnet.train.objective as objective
import bitnet.train.start as start
from bitnet.data.stream import Skip, data_step
from bitnet.nn.transformer import BitNetTransformer
from bitnet.optim.optimizer import OptimizerConfig, Optimizers
from bitnet.run.layout import RunLayout
from bitnet.run.metrics import read_lines
from bitnet.train.loop import StepReport
from bitnet.train.observe.guard import Diverged, Guard
from conftest import TINY_TRAIN, Result, after_update, run_command, terminate

STEPS, ROWS = 14, 8  # updates, rows of each; checkpoints at 0, 4, 6, 7 (the stage boundary), 8, 12 and 14
TIMED = {"step_time_ms", "tokens_per_sec", "process_mem_gb", "mfu", "time_unix"}
POISON = range(9 * ROWS, 11 * ROWS + 1)  # the rows of updates 10 and 11, and one of update 12


def train(runs: Path, *words: object) -> Result:
    often = [
        "--train.checkpoint-every",
        4,
        "--train.eval-every",
        3,
        "--train.probe-every",
        3,
        "--train.sample-every",
        5,
    ]
    plain = [
        "--train.product",
        "float",
    ]  # int8 products are tried before the first update, on rows that would count as read
    return run_command(
        *TINY_TRAIN, *often, *plain, "--num-steps", STEPS, "--run-id", "r", "--runs-dir", runs, *words
    )


def run_of(runs: Path) -> RunLayout:
    return RunLayout(runs / "r")


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in TIMED} for row in read_lines(path).rows]


def outcome(runs: Path) -> dict[str, Any]:
    """Everything that a finished run determines."""
    layout = run_of(runs)
    final = layout.checkpoint(STEPS)
    found: dict[str, Any] = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in final.glob("*.safetensors")
    }
    found["state"] = json.loads((final / "state.json").read_text())
    del found["state"]["lines"]  # their SHA-256 covers times, which hang on the machine
    return found | {path.name: rows_of(path) for path in (*layout.line_files(), layout.roll_backs)}


class Poisoned:
    """Training on rows of which some give a NaN as the loss. read: the rows of every update that was
    begun.
    """

    def __init__(self, patch: pytest.MonkeyPatch, rows: range) -> None:
        self.read: list[list[int]] = []
        real_numbers, real_loss = loop.row_numbers, objective.summed_loss

        def numbers(*words: Any, **sizes: Any) -> Any:
            found = real_numbers(*words, **sizes)
            self.read.append(found.tolist())
            return found

        def loss(logits: torch.Tensor, batch: Any) -> torch.Tensor:
            return real_loss(logits, batch) * (float("nan") if set(self.read[-1]) & set(rows) else 1.0)

        patch.setattr(loop, "row_numbers", numbers)
        patch.setattr(objective, "summed_loss", loss)


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Poisoned:
    return Poisoned(monkeypatch, POISON)


def happening_after(step: int, happening: Callable[[], None]) -> Callable[..., Iterator[StepReport]]:
    """The training loop; something happens once, right after the n-th update that is done."""
    real, done = start.train_steps, 0

    def steps(*words: Any, **options: Any) -> Iterator[StepReport]:
        nonlocal done
        for report in real(*words, **options):
            done += 1
            if done == step:
                happening()
            yield report

    return steps


def test_the_data_of_an_update_is_a_function_of_the_skips() -> None:
    skips = [Skip(9, 4), Skip(12, 2)]
    assert [data_step(step, skips) for step in (1, 8, 9, 11, 12, 13)] == [1, 8, 13, 15, 18, 19]
    assert data_step(9, []) == 9


@pytest.mark.slow
def test_three_in_a_row_go_back_to_the_last_checkpoint_and_skip_that_data(
    poisoned: Poisoned, tmp_path: Path
) -> None:
    result = train(tmp_path)
    assert result.code == 0, result.err
    layout = run_of(tmp_path)
    scalars = read_lines(layout.scalars).rows
    assert [row["step"] for row in scalars] == list(range(1, STEPS + 1))
    assert all(row["refused"] is None and row["loss"] is not None for row in scalars)
    assert [row["anomaly_flag"] for row in scalars] == [*[None] * 8, "roll_back", *[None] * 5]
    evaluations = [row["step"] for row in read_lines(layout.evaluations).rows]
    assert evaluations == [3, 6, 9, 12, 14]

    (line,) = read_lines(layout.roll_backs).rows
    assert (line["step"], line["checkpoint_step"], line["failed_step"]) == (9, 8, 12)
    assert (line["refused_steps"], line["reason"]) == ([10, 11, 12], "nan_inf_loss")
    assert (line["skipped_updates"], line["skipped_rows"]) == (4, [8 * ROWS, 12 * ROWS - 1])
    folders = {path.name for path in layout.anomaly_folders()}
    assert folders == {*(f"step_0000{n}_nan_inf_loss" for n in (10, 11, 12)), "step_000012_roll_back"}
    assert json.loads((layout.anomaly(12, "roll_back") / "roll_back.json").read_text())["skipped_rows"] == [
        64,
        95,
    ]
    assert (
        "went back to the checkpoint of update 8"
        in (layout.anomaly(12, "roll_back") / "README.md").read_text()
    )
    assert "rows 64 to 95" in result.out
    assert json.loads(layout.status.read_text())["state"] == "done"

    updates = [[*range(n * ROWS, (n + 1) * ROWS)] for n in (*range(12), *range(12, 18))]
    assert poisoned.read == updates  # twelve updates, and then those from 9 on with the data of 13 to 18


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The outcome of a run with a roll-back that nothing interrupts."""
    runs = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        Poisoned(patch, POISON)
        assert train(runs).code == 0
    return outcome(runs)


@pytest.mark.slow
@pytest.mark.parametrize("done", [9, 11, 12, 13, 16, 17])
@pytest.mark.parametrize("kind", ["signal", "crash"])
def test_an_interruption_anywhere_round_a_roll_back_changes_nothing(
    poisoned: Poisoned,
    whole: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    done: int,
) -> None:
    """Before and between refused updates, at the last of them, right after the roll-back, and round the next
    checkpoint.
    """

    def crash() -> None:
        raise ZeroDivisionError("the test's crash")

    def stop() -> None:
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(start, "train_steps", happening_after(done, crash if kind == "crash" else stop))
        if kind == "crash":
            with pytest.raises(ZeroDivisionError):
                train(tmp_path / "cut")
        else:
            assert train(tmp_path / "cut").code == 128 + signal.SIGTERM
    assert train(tmp_path / "cut").code == 0
    assert outcome(tmp_path / "cut") == whole


@pytest.mark.slow
def test_when_it_comes_again_the_run_stops_and_names_the_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Poisoned(monkeypatch, range(9 * ROWS, 1000 * ROWS))
    result = train(tmp_path)
    assert result.code == 1
    assert len(result.err.strip().splitlines()) == 1
    assert "nan_inf_loss in 3 updates in a row, 9 to 11, which read the rows 96 to 119" in result.err
    assert (
        "after update 12 the run went back to the checkpoint of update 8 and skipped the rows 64 to 95"
        in result.err
    )
    assert "--train.muon-lr" in result.err
    assert "done" not in result.out
    status = json.loads(run_of(tmp_path).status.read_text())
    assert status["state"] == "failed"
    assert "again" in status["why"]
    assert all(run_of(tmp_path).checkpoint(step).is_dir() for step in (0, 7, 8))
    again = train(tmp_path)
    assert again.code == 1
    assert "again" in again.err
    assert len(read_lines(run_of(tmp_path).roll_backs).rows) == 1


@pytest.mark.slow
def test_the_rate_is_not_blamed_for_the_first_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Poisoned(monkeypatch, range(1000 * ROWS))
    result = train(tmp_path)
    assert result.code == 1
    assert "3 updates in a row, 1 to 3" in result.err
    assert "-lr" not in result.err
    assert "compiler" not in result.err


@pytest.mark.slow
def test_one_or_two_refused_updates_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poisoned = Poisoned(monkeypatch, range(9 * ROWS, 11 * ROWS))
    assert train(tmp_path).code == 0
    assert len(poisoned.read) == STEPS
    assert [row["refused"] for row in read_lines(run_of(tmp_path).scalars).rows][9:11] == ["nan_inf_loss"] * 2
    assert not run_of(tmp_path).roll_backs.exists()


def broken_weights(once: bool) -> Callable[..., Iterator[StepReport]]:
    """The training loop; update 7, after which a checkpoint is due, leaves an infinite weight behind."""
    real, breaks = start.train_steps, True

    def steps(model: BitNetTransformer, *words: Any, **options: Any) -> Iterator[StepReport]:
        nonlocal breaks
        for report in real(model, *words, **options):
            if report.step == 7 and breaks:
                breaks = not once
                with torch.no_grad():
                    model.final_norm.weight[0] = torch.inf
            yield report

    return steps


@pytest.mark.slow
def test_weights_that_are_not_finite_are_not_saved_and_the_run_goes_back_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "train_steps", broken_weights(once=True))
    result = train(tmp_path)
    assert result.code == 0, result.err
    layout = run_of(tmp_path)
    (line,) = read_lines(layout.roll_backs).rows
    assert (line["reason"], line["refused_steps"], line["checkpoint_step"]) == ("nan_inf_weights", [], 6)
    assert (layout.anomaly(7, "roll_back") / "batch.json").is_file()
    assert [row["step"] for row in read_lines(layout.scalars).rows] == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_a_run_that_dies_of_its_weights_resumes_from_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(start, "train_steps", broken_weights(once=False))
        failed = train(tmp_path)
    assert failed.code == 1
    assert "nan_inf_weights at update 7" in failed.err
    assert run_of(tmp_path).checkpoint_steps()[-1] == 6
    resumed = train(tmp_path)
    assert resumed.code == 0
    assert "continuing after update 6" in resumed.out


@pytest.mark.slow
def test_a_signal_at_broken_weights_leaves_no_checkpoint_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = start.train_steps

    def broken(model: BitNetTransformer, *words: Any, **options: Any) -> Iterator[StepReport]:
        for report in real(model, *words, **options):
            if report.step == 5:
                with torch.no_grad():
                    model.final_norm.weight[0] = torch.nan
            yield report

    with monkeypatch.context() as patch:
        patch.setattr(start, "train_steps", broken)
        with after_update(5, terminate):
            stopped = train(tmp_path)
    assert stopped.code == 128 + signal.SIGTERM
    assert "no checkpoint of update 5 was written, because final_norm.weight" in stopped.out
    assert "continuing after update 4" in train(tmp_path).out


@pytest.mark.slow
@pytest.mark.parametrize("change", ["delete", "edit", "garbage"])
def test_a_resume_notices_that_the_skipped_data_was_altered(
    poisoned: Poisoned, tmp_path: Path, change: str
) -> None:
    assert train(tmp_path).code == 0
    layout = run_of(tmp_path)
    layout.status.write_text(layout.status.read_text().replace('"done"', '"stopped"'))
    text = layout.roll_backs.read_text()
    if change == "delete":
        layout.roll_backs.unlink()
    else:
        layout.roll_backs.write_text(
            text.replace('"skipped_updates": 4', '"skipped_updates": 5') if change == "edit" else text + "{\n"
        )
    result = train(tmp_path)
    assert result.code == 2
    assert "roll_backs.jsonl was altered or lost" in result.err
    assert len(result.err.strip().splitlines()) == 1


def test_a_guard_goes_on_counting_after_a_resume(tiny_model: BitNetTransformer) -> None:
    guard = Guard(step=11, refused_in_a_row=2)
    assert guard.refused == [10, 11]
    report: Any = type("Report", (), {"step": 12, "refused": "nan_inf_grad", "batches": (None,)})
    with pytest.raises(Diverged) as caught:
        guard(report)
    assert (caught.value.first, caught.value.last, caught.value.refused) == (10, 12, (10, 11, 12))


def test_restoring_an_optimizer_forgets_what_it_knew(tiny_model: BitNetTransformer) -> None:
    """Going back to the start, where the optimizer has no state yet, must not keep the moments of a broken
    run.
    """
    kind = OptimizerConfig(
        kind="muon", adam_beta1=0.9, adam_beta2=0.95, muon_momentum=0.95, muon_lr_ratio=10.0
    )
    optimizers = Optimizers(tiny_model, kind)
    for parameter in tiny_model.parameters():
        parameter.grad = torch.ones_like(parameter)
    from bitnet.optim.schedule import Rates

    optimizers.step(Rates(lr=0.1, wd=0.0))
    assert optimizers.state_tensors()
    optimizers.load_state_tensors({})
    assert optimizers.state_tensors() == {}
