"""`bitnet status`, `runs` and `plot` on runs in every state."""

from __future__ import annotations

import fcntl
import json
import sys
from pathlib import Path

import pytest

from bitnet.run.layout import RunLayout
from conftest import Command


def set_state(run: Path, state: str) -> None:
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps({**status, "state": state}))


def test_finished_run(bitnet: Command, runs: Path) -> None:
    summary = bitnet("status", "tiny", "--runs-dir", runs, "--json").json
    assert (summary["state"], summary["step"], summary["total_steps"]) == ("done", 8, 8)
    assert summary["eta_s"] is None
    assert summary["evaluation"]["step"] == 8
    assert summary["ternary"]["zero_pct"] > 0
    assert summary["samples"][0]["step"] == 8
    page = bitnet("status", "tiny", "--runs-dir", runs).out
    assert "8/8" in page
    assert "#" * 40 in page


def test_a_greedy_sample_stands_beside_a_stressed_one(bitnet: Command, runs: Path) -> None:
    """Only the last line of the file was shown, which is the stressed one: nonsense by design, whatever the
    model is worth.
    """
    result = bitnet("status", "tiny", "--runs-dir", runs, "--json").json
    assert [sample["mode"] for sample in result["samples"]] == ["greedy", "stress"]
    assert {(sample["step"], sample["prompt"]) for sample in result["samples"]} == {
        (8, result["samples"][0]["prompt"])
    }
    page = bitnet("status", "tiny", "--runs-dir", runs).out
    shown = [line for line in page.splitlines() if line.startswith("sample")]
    assert ["greedy" in shown[0], "stress" in shown[1]] == [True, True]


def test_running_is_told_from_killed_by_the_lock(bitnet: Command, runs: Path) -> None:
    set_state(runs / "tiny", "running")
    assert bitnet("status", "tiny", "--runs-dir", runs, "--json").json["state"] == "killed"
    with RunLayout(runs / "tiny").lock.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert bitnet("status", "tiny", "--runs-dir", runs, "--json").json["state"] == "running"


def test_stage_and_time_to_go_half_way(bitnet: Command, runs: Path) -> None:
    scalars = runs / "tiny" / "metrics" / "scalars.jsonl"
    scalars.write_text("".join(line + "\n" for line in scalars.read_text().splitlines()[:4]))
    set_state(runs / "tiny", "running")
    with RunLayout(runs / "tiny").lock.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        summary = bitnet("status", "tiny", "--runs-dir", runs, "--json").json
    assert (summary["step"], summary["stage"]) == (4, 1)
    times = [json.loads(line)["step_time_ms"] for line in scalars.read_text().splitlines()]
    assert summary["eta_s"] == pytest.approx(4 * sum(times) / 4 / 1e3)


@pytest.mark.slow
def test_half_written_and_foreign_lines_are_counted(bitnet: Command, runs: Path) -> None:
    with (runs / "tiny" / "metrics" / "scalars.jsonl").open("a") as file:
        file.write('garbage\n{"step": 9, "loss": 1.')
    summary = bitnet("status", "tiny", "--runs-dir", runs, "--json").json
    assert summary["step"] == 8
    assert summary["unreadable_lines"] == 2
    plot = bitnet("plot", "tiny", "--runs-dir", runs)
    assert plot.code == 0
    assert "2 unreadable lines" in plot.err


def test_damaged_status_and_config_still_answer(bitnet: Command, runs: Path) -> None:
    (runs / "tiny" / "status.json").write_text("{")
    (runs / "tiny" / "meta" / "config.json").write_text("")
    summary = bitnet("status", "tiny", "--runs-dir", runs, "--json").json
    assert (summary["state"], summary["step"]) == ("damaged", 8)


def test_missing_run_is_one_line(bitnet: Command, runs: Path) -> None:
    result = bitnet("status", "tino", "--runs-dir", runs)
    assert result.code == 2
    assert 'Did you mean "tiny"?' in result.err


@pytest.mark.slow
@pytest.mark.parametrize("axis", ["steps", "tokens", "time"])
def test_plot_is_a_png_and_overlays_runs(bitnet: Command, runs: Path, tmp_path: Path, axis: str) -> None:
    out = tmp_path / "deep" / "p.png"
    result = bitnet("plot", "tiny", "tiny", "--runs-dir", runs, "--out", out, "--x", axis)
    assert result.code == 0, result.err
    assert out.read_bytes().startswith(b"\x89PNG")


def test_plot_of_a_run_without_metrics_and_without_matplotlib(
    bitnet: Command, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (runs / "tiny" / "metrics" / "scalars.jsonl").unlink()
    assert "no metrics yet" in bitnet("plot", "tiny", "--runs-dir", runs).err
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = bitnet("plot", "tiny", "--runs-dir", runs)
    assert result.code == 2
    assert "bitnet[plot]" in result.err
