"""`bitnet diagnose` through its door: a fresh model, a run, a damaged run, bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bitnet.cli.diagnose import experiment_word
from bitnet.diagnose.finding import SUSPECTS
from conftest import TINY_MODEL, Command


@pytest.mark.slow
def test_a_fresh_model_is_healthy(bitnet: Command) -> None:
    """With the rehearsal: two short runs of the real trainer, one stopped and resumed."""
    result = bitnet(
        "diagnose",
        "arithmetic",
        "--variant",
        "quick",
        "--device",
        "cpu",
        *TINY_MODEL,
        "--data.max-operand",
        30,
        "--json",
    )
    assert result.code == 0, result.err
    assert result.json["healthy"] is True
    assert result.json["suspect"] == "none"
    assert all({"name", "value", "expected", "ok"} <= check.keys() for check in result.json["checks"])
    names = {check["name"] for check in result.json["checks"]}
    assert any("resumed run" in name for name in names)
    assert {"right answers pass", "wrong answers do not pass"} <= names, "the judge takes stand-ins"
    assert "verdict: healthy" in result.err


@pytest.mark.slow
def test_a_run_of_eight_updates_has_trained_too_little(bitnet: Command, runs: Path) -> None:
    result = bitnet("diagnose", "tiny", "--runs-dir", runs, "--device", "cpu", "--json")
    assert result.code == 1, result.err
    assert result.json["suspect"] == "training", result.json["evidence"]
    assert "criteria of success" in result.json["evidence"]
    assert result.json["sure"] == "unfinished", (
        "its plan was cut short, and nothing else is wrong: no hint of a fault"
    )
    assert "tokens that its variant plans" in result.json["unfinished"]
    assert "training (unfinished)" in result.err
    assert any("«" in row for row in result.json["rows"])
    stored = json.loads((runs / "tiny" / "eval" / "diagnosis.json").read_text())
    assert stored["suspect"] == "training"


@pytest.mark.slow
def test_a_run_without_a_whole_checkpoint_is_a_finding_and_no_error(bitnet: Command, runs: Path) -> None:
    for path in (runs / "tiny" / "checkpoints").glob("*/model.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    result = bitnet("diagnose", "tiny", "--runs-dir", runs, "--device", "cpu", "--json")
    assert result.code == 1, result.err
    assert result.json["suspect"] == "checkpoint"
    assert result.json["suspect"] in SUSPECTS


@pytest.mark.slow
def test_bad_input_is_one_line(bitnet: Command, runs: Path) -> None:
    for words in (
        ["nothing"],
        ["arithmetic", "--variant", "no"],
        ["tiny", "--variant", "quick"],
        ["arithmetic", "--no-such-flag"],
        [],
    ):
        result = bitnet("diagnose", *words, "--runs-dir", runs)
        assert result.code == 2, words
        assert result.err.startswith("bitnet: ")
        assert len(result.err.strip().splitlines()) == 1


def test_which_word_is_the_experiment() -> None:
    assert experiment_word(["--variant", "quick", "arithmetic"]) == "arithmetic"
    assert experiment_word(["--runs-dir", "arithmetic", "latest"]) is None
    assert experiment_word(["--json", "tictactoe"]) == "tictactoe"
    assert experiment_word(["mine.py"]) == "mine.py"
    assert experiment_word(["bitnet_5M_arithmetic_1"]) is None
