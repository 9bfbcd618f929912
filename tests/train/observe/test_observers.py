"""What observers write, and that they disturb nothing."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bitnet.run.metrics import read_lines
from bitnet.run.schema import (
    EVALUATION,
    FILES,
    FINGERPRINT,
    MATRIX,
    PROVENANCE,
    SAMPLES,
    SCALARS,
    STATE,
    STATUS,
    page,
)
from bitnet.train.loop import StepReport
from conftest import TINY_TRAIN, Command, Result

ROOT = Path(__file__).parents[3]
OFTEN = ["--train.eval-every", 2, "--train.sample-every", 2, "--train.probe-every", 2]


def train(bitnet: Command, runs: Path, run_id: str, *words: object) -> Result:
    return bitnet(*TINY_TRAIN, "--runs-dir", runs, "--run-id", run_id, *words)


def losses(runs: Path, run_id: str) -> list[float]:
    return [row["loss"] for row in read_lines(runs / run_id / "metrics" / "scalars.jsonl").rows]


@pytest.mark.slow
def test_losses_are_the_same_with_and_without_measurements(bitnet: Command, tmp_path: Path) -> None:
    assert train(bitnet, tmp_path, "quiet", "--num-steps", 9).code == 0
    assert train(bitnet, tmp_path, "busy", "--num-steps", 9, *OFTEN).code == 0
    assert losses(tmp_path, "quiet") == losses(tmp_path, "busy")
    assert len(read_lines(tmp_path / "busy" / "samples" / "samples.jsonl").rows) > len(
        read_lines(tmp_path / "quiet" / "samples" / "samples.jsonl").rows
    )


def test_every_documented_key_is_written_and_no_other(bitnet: Command, tmp_path: Path) -> None:
    assert train(bitnet, tmp_path, "r", "--num-steps", 4, *OFTEN).code == 0
    run = tmp_path / "r"
    scalars = read_lines(run / "metrics" / "scalars.jsonl").rows
    assert [row["step"] for row in scalars] == [1, 2, 3, 4]
    assert all(row.keys() == SCALARS.keys() for row in scalars)
    probes = read_lines(run / "metrics" / "quantization.jsonl").rows
    assert [row["step"] for row in probes] == [2, 4]
    layers = ("L0_attn_qkv", "L0_attn_out", "L0_ffn_gate_up", "L0_ffn_down")
    wanted = {"step", *(MATRIX.keys() - {"scale"}), *(f"{layer}_{key}" for layer in layers for key in MATRIX)}
    assert all(row.keys() == wanted for row in probes)
    evaluations = read_lines(run / "eval" / "eval_results.jsonl").rows
    assert all(EVALUATION.keys() <= row.keys() and "exact_match_cases" in row for row in evaluations)
    samples = read_lines(run / "samples" / "samples.jsonl").rows
    assert all(row.keys() == SAMPLES.keys() for row in samples)
    assert {row["mode"] for row in samples} == {"greedy", "typical", "stress"}
    for name, keys in (
        ("meta/provenance.json", PROVENANCE),
        ("meta/dataset_fingerprint.json", FINGERPRINT),
        ("status.json", STATUS),
    ):
        assert json.loads((run / name).read_text()).keys() == keys.keys()
    assert json.loads((run / "checkpoints/step_000004/state.json").read_text()).keys() == STATE.keys()
    assert FILES


def test_the_page_about_the_run_directory_is_the_generated_one() -> None:
    assert (ROOT / "docs" / "run-directory.md").read_text(encoding="utf-8") == page() + "\n"


@pytest.mark.slow
def test_samples_repeat_exactly(bitnet: Command, tmp_path: Path) -> None:
    texts = []
    for run_id in ("a", "b"):
        assert train(bitnet, tmp_path, run_id, "--num-steps", 2, *OFTEN).code == 0
        texts.append((tmp_path / run_id / "samples" / "samples.jsonl").read_text())
    assert texts[0] == texts[1]


@pytest.mark.slow
def test_flips_survive_a_resume(bitnet: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped between two probes, the next probe still compares with the last one."""
    often = ["--train.probe-every", 4, "--train.checkpoint-every", 3, "--num-steps", 8]
    assert train(bitnet, tmp_path, "whole", *often).code == 0
    import bitnet.train.start as start

    real, count = start.train_steps, 0

    def breaks_after_six(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        for report in real(*args, **kwargs):
            count += 1
            yield report
            if count == 6:
                raise KeyboardInterrupt

    monkeypatch.setattr(start, "train_steps", breaks_after_six)
    assert train(bitnet, tmp_path, "cut", *often).code == 130
    monkeypatch.setattr(start, "train_steps", real)
    assert train(bitnet, tmp_path, "cut", *often).code == 0
    for name in ("metrics/quantization.jsonl", "samples/samples.jsonl", "eval/eval_results.jsonl"):
        assert (tmp_path / "whole" / name).read_text() == (tmp_path / "cut" / name).read_text()


def dumps(runs: Path, run_id: str) -> list[Path]:
    folder = runs / run_id / "anomalies"
    return sorted(folder.iterdir()) if folder.is_dir() else []


def test_clean_run_fires_nothing(runs: Path) -> None:
    assert dumps(runs, "tiny") == []
    assert all(
        row["anomaly_flag"] is None for row in read_lines(runs / "tiny" / "metrics" / "scalars.jsonl").rows
    )


@pytest.mark.slow
def test_repetition_and_entropy_rules_dump_everything(bitnet: Command, tmp_path: Path) -> None:
    """A nearly untrained model with thresholds set to fire; every file of the dump is there and readable."""
    rules = ["--train.entropy-floor", 99, "--train.repetition-limit", 1, "--train.sample-every", 2]
    assert train(bitnet, tmp_path, "r", "--num-steps", 2, *rules).code == 0
    assert [path.name for path in dumps(tmp_path, "r")] == [
        "step_000002_entropy_collapse",
        "step_000002_repetition_surge",
    ]
    folder = dumps(tmp_path, "r")[0]
    names = {path.name for path in folder.iterdir()}
    assert {
        "README.md",
        "batch.json",
        "grad_norms.json",
        "L0_attn_activations.json",
        "L0_attn_activations.png",
        "L0_qkv_quant_dist.json",
        "L0_qkv_quant_dist.png",
        "prompt_25_+_17_=__top20.json",
    } <= names
    norms = json.loads((folder / "grad_norms.json").read_text())
    assert norms["blocks.0.attention.qkv_proj.weight"] > 0
    batch = json.loads((folder / "batch.json").read_text())
    assert len(batch["text"]) == len(batch["input_ids"]) == 8
    assert " = " in batch["text"][0]
    top = json.loads((folder / "prompt_25_+_17_=__top20.json").read_text())
    assert len(top["tokens"]) == 20
    assert 0 < sum(top["probs"]) <= 1.0001
    readme = (folder / "README.md").read_text()
    assert "entropy_collapse" in readme
    assert "below 99" in readme
    flags = [row["anomaly_flag"] for row in read_lines(tmp_path / "r" / "metrics" / "scalars.jsonl").rows]
    assert flags == [None, "entropy_collapse,repetition_surge"]


def present_update(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Which update's rows were read last. Losses are also computed before the first update, where a fast path
    is tried.
    """
    import bitnet.train.loop as loop

    real, present = loop.row_numbers, 0

    def numbers(step: int, *words: Any, **sizes: Any) -> Any:
        nonlocal present
        present = step
        return real(step, *words, **sizes)

    monkeypatch.setattr(loop, "row_numbers", numbers)
    return lambda: present


@pytest.mark.slow
def test_every_rule_has_its_own_budget_of_dumps(
    bitnet: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Early collapses, which many runs begin with, leave room for the folder of a later NaN."""
    import bitnet.train.objective as objective

    real, step = objective.summed_loss, present_update(monkeypatch)
    monkeypatch.setattr(
        objective, "summed_loss", lambda *words: real(*words) * (float("nan") if step() == 5 else 1.0)
    )
    rules = ["--train.entropy-floor", 99, "--train.sample-every", 1, "--train.max-dumps", 2]
    result = train(bitnet, tmp_path, "r", "--num-steps", 6, *rules)
    assert result.code == 0
    collapses = [f"step_00000{step}_entropy_collapse" for step in (1, 2)]
    assert [path.name for path in dumps(tmp_path, "r")] == [*collapses, "step_000005_nan_inf_loss"]
    assert result.out.count("no dump") == 4
    flags = [row["anomaly_flag"] for row in read_lines(tmp_path / "r" / "metrics" / "scalars.jsonl").rows]
    assert flags == [*["entropy_collapse"] * 4, "nan_inf_loss,entropy_collapse", "entropy_collapse"]


def broken_after(step: int, real: Callable[..., Any]) -> Callable[..., Any]:
    """The training loop, with a NaN in the weights as soon as an update is done."""

    def steps(model: Any, *words: Any, **options: Any) -> Any:
        for report in real(model, *words, **options):
            if report.step == step:
                with torch.no_grad():
                    model.final_norm.weight[0] = torch.nan
            yield report

    return steps


@pytest.mark.slow
def test_samples_of_a_broken_model_are_recorded_and_its_dump_comes_first(
    bitnet: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch.multinomial raises on NaN, which once ended the run before any dump, flag or line of metrics."""
    import bitnet.train.start as start

    monkeypatch.setattr(start, "train_steps", broken_after(6, start.train_steps))
    result = train(
        bitnet, tmp_path, "r", "--num-steps", 9, "--train.sample-every", 7, "--train.eval-every", 7
    )
    assert result.code == 1
    assert "Traceback" not in result.err
    assert {"step_000007_nan_inf_loss", "step_000007_nan_inf_logits"} <= {
        path.name for path in dumps(tmp_path, "r")
    }
    assert all((folder / "grad_norms.json").is_file() for folder in dumps(tmp_path, "r"))
    samples = read_lines(tmp_path / "r" / "samples" / "samples.jsonl").rows
    assert all(row["non_finite"] and row["mean_entropy"] is None for row in samples if row["step"] == 7)
    flags = {
        row["step"]: row["anomaly_flag"]
        for row in read_lines(tmp_path / "r" / "metrics" / "scalars.jsonl").rows
    }
    assert flags[7] == "nan_inf_loss,nan_inf_logits"


def test_observers_run_in_their_order(
    bitnet: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import bitnet.train.start as start

    names: list[str] = []
    real = start.observers_of

    def listed(*words: Any) -> Any:
        observers, checkpoints = real(*words)
        names.extend(type(observer).__name__ for observer in observers)
        return observers, checkpoints

    monkeypatch.setattr(start, "observers_of", listed)
    assert train(bitnet, tmp_path, "r", "--num-steps", 1).code == 0
    assert names[:6] == ["UpdateAlarms", "Samples", "SampleAlarms", "Scalars", "LossAverage", "Guard"]
    assert names[-1] == "Checkpoints"


@pytest.mark.slow
def test_refused_losses_enter_no_average_and_a_resume_agrees(
    bitnet: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of an update with a broken gradient is finite, and was once read back into the average on
    resume.
    """
    import bitnet.train.loop as loop
    import bitnet.train.start as start

    real_steps, real_apply, stop_at = start.train_steps, loop.apply_update, 3
    calls = 0

    def broken_gradient(model: Any, *words: Any, loss: float, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            next(model.parameters()).grad[0] = torch.inf
        return real_apply(model, *words, loss=loss, **options)

    def stopped(*words: Any, **options: Any) -> Any:
        for report in real_steps(*words, **options):
            if report.step == stop_at:
                signal.raise_signal(signal.SIGTERM)
            yield report

    monkeypatch.setattr(loop, "apply_update", broken_gradient)
    often = ["--num-steps", 5, "--train.eval-every", 4]
    assert train(bitnet, tmp_path, "whole", *often).code == 0
    calls = 0
    monkeypatch.setattr(start, "train_steps", stopped)
    assert train(bitnet, tmp_path, "cut", *often).code == 128 + signal.SIGTERM
    stop_at = 0
    assert train(bitnet, tmp_path, "cut", *often).code == 0
    rows = read_lines(tmp_path / "whole" / "metrics" / "scalars.jsonl").rows
    assert [row["refused"] for row in rows] == [None, "nan_inf_grad", None, None, None]
    assert rows[1]["loss"] is not None
    evaluation = read_lines(tmp_path / "whole" / "eval" / "eval_results.jsonl").rows[0]
    assert evaluation["train_loss"] == pytest.approx(sum(rows[n]["loss"] for n in (0, 2, 3)) / 3)
    assert (tmp_path / "whole/eval/eval_results.jsonl").read_text() == (
        tmp_path / "cut/eval/eval_results.jsonl"
    ).read_text()


@pytest.mark.slow
def test_loss_spike_dumps_the_batch(bitnet: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import bitnet.train.objective as objective

    real, step = objective.summed_loss, present_update(monkeypatch)
    monkeypatch.setattr(
        objective, "summed_loss", lambda *words: real(*words) * (50.0 if step() == 105 else 1.0)
    )
    assert train(bitnet, tmp_path, "r", "--num-steps", 106).code == 0
    assert [path.name for path in dumps(tmp_path, "r")] == ["step_000105_loss_spike"]


@pytest.mark.slow
def test_nan_is_dumped_refused_and_the_second_time_the_run_fails(
    bitnet: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import bitnet.train.objective as objective

    real = objective.summed_loss
    monkeypatch.setattr(objective, "summed_loss", lambda logits, batch: real(logits, batch) * float("nan"))
    result = train(bitnet, tmp_path, "r", "--num-steps", 9)
    assert result.code == 1
    assert "3 updates in a row" in result.err
    assert len(result.err.strip().splitlines()) == 1
    assert "done" not in result.out
    refused = [f"step_00000{n}_nan_inf_loss" for n in (1, 2, 3)]
    assert [path.name for path in dumps(tmp_path, "r")] == [*refused, "step_000003_roll_back"]
    assert json.loads((tmp_path / "r" / "status.json").read_text())["state"] == "failed"
    assert all(row["loss"] is None for row in read_lines(tmp_path / "r" / "metrics" / "scalars.jsonl").rows)


@pytest.mark.slow
def test_full_disk_while_logging_stops_with_one_message_and_keeps_what_was_written(
    bitnet: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    from bitnet.run.metrics import LineWriter

    real = LineWriter.write

    def full_at_four(self: LineWriter, row: dict[str, Any]) -> None:
        if row["step"] == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, row)

    monkeypatch.setattr(LineWriter, "write", full_at_four)
    result = train(bitnet, tmp_path, "r", "--num-steps", 6)
    assert result.code == 2
    assert "No space left" in result.err
    assert len(result.err.strip().splitlines()) == 1
    monkeypatch.setattr(LineWriter, "write", real)
    assert [row["step"] for row in read_lines(tmp_path / "r" / "metrics" / "scalars.jsonl").rows] == [1, 2, 3]
    assert train(bitnet, tmp_path, "r", "--num-steps", 6).code == 0
    assert [row["step"] for row in read_lines(tmp_path / "r" / "metrics" / "scalars.jsonl").rows] == [
        1,
        2,
        3,
        4,
        5,
        6,
    ]


def test_a_failed_run_says_at_which_update(
    bitnet: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """status.json gave the step of the last log line, 0 here; after a resume that failed at once it gave 0 as
    well.
    """

    def fail(self: object, report: StepReport) -> None:
        if report.step == 7:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("bitnet.train.observe.scalars.LossAverage.__call__", fail)
    words = ["--num-steps", 9, "--train.log-every", 50, "--train.checkpoint-every", 3]
    assert train(bitnet, tmp_path, "failed", *words).code == 2
    shown = bitnet("status", "failed", "--runs-dir", tmp_path, "--json").json
    assert (shown["state"], shown["step"]) == ("failed", 7)
    assert json.loads((tmp_path / "failed" / "status.json").read_text())["step"] == 7

    (tmp_path / "failed" / "eval" / "frozen_set.safetensors").unlink()
    assert train(bitnet, tmp_path, "failed", *words).code == 2
    assert (
        json.loads((tmp_path / "failed" / "status.json").read_text())["step"] == 7
    )  # refused before anything was cut back
