"""A run and its control: trained by one command, compared by another, and refused where they are not
alike.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from bitnet.cli.train import control_config
from bitnet.errors import ConfigError
from bitnet.experiments.arithmetic import QUICK
from bitnet.report.compare import compare, table, unequal
from bitnet.run.layout import RunLayout
from conftest import TINY_TRAIN, Command

STEPS = """
    --num-steps 4 --train.eval-every 2 --train.sample-every 4 --train.checkpoint-every 4
""".split()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder with `mine` and `mine_control`."""
    from conftest import run_command

    runs = tmp_path_factory.mktemp("pair") / "runs"
    result = run_command(*TINY_TRAIN, *STEPS, "--run-id", "mine", "--control", "--runs-dir", runs, "--json")
    assert result.code == 0, result.err
    assert result.json["run"] == "mine"
    assert result.json["control"] == {"run": "mine_control", "state": "done", "step": 4}
    assert "bitnet compare" in result.err
    return runs


@pytest.mark.slow
def test_control_differs_in_its_weights_alone(pair: Path) -> None:
    first, second = RunLayout(pair / "mine"), RunLayout(pair / "mine_control")
    assert unequal(first, second) == []
    assert '"weights": "full"' in second.config.read_text()
    assert '"activations": "full"' in second.config.read_text()


@pytest.mark.slow
def test_gap_is_second_minus_first_at_every_common_evaluation(pair: Path) -> None:
    found = compare(RunLayout(pair / "mine"), RunLayout(pair / "mine_control"), ["exact_match"])
    assert found.steps == [2, 4]
    assert {"train_loss", "eval_loss", "bits_per_byte", "exact_match"} <= found.values.keys()
    for (first, second), gap in zip(found.values["eval_loss"], found.gap("eval_loss"), strict=True):
        assert gap == second - first
    assert "eval_loss" in table(found)
    mirrored = compare(RunLayout(pair / "mine_control"), RunLayout(pair / "mine"))
    assert mirrored.gap("eval_loss") == [-gap for gap in found.gap("eval_loss")]


@pytest.mark.slow
def test_the_command_prints_and_draws(pair: Path, bitnet: Command, tmp_path: Path) -> None:
    result = bitnet(
        "compare", "mine", "mine_control", "--runs-dir", pair, "--out", tmp_path / "gap.png", "--json"
    )
    assert result.code == 0, result.err
    assert (tmp_path / "gap.png").read_bytes().startswith(b"\x89PNG")
    assert result.json["last"]["step"] == 4
    assert result.json["last"]["eval_loss"].keys() == {"first", "second", "gap"}


@pytest.mark.slow
def test_runs_of_different_recipes_are_refused_and_can_be_forced(
    pair: Path, bitnet: Command, tmp_path: Path
) -> None:
    trained = bitnet(*TINY_TRAIN, *STEPS, "--seed", "9", "--run-id", "other", "--runs-dir", pair)
    assert trained.code == 0, trained.err
    refused = bitnet("compare", "mine", "other", "--runs-dir", pair)
    assert refused.code == 2
    assert "training.seed: 42, 9" in refused.err
    assert "--force" in refused.err
    forced = bitnet("compare", "mine", "other", "--runs-dir", pair, "--force", "--out", tmp_path / "gap.png")
    assert forced.code == 0
    assert "CAUTION" in forced.out


def test_bad_input_is_one_line(pair: Path, bitnet: Command) -> None:
    for words in (["mine"], ["mine", "mine"], ["mine", "mine_control", "--out", "gap.txt"]):
        result = bitnet("compare", *words, "--runs-dir", pair)
        assert result.code == 2
        assert result.err.startswith("bitnet: ")


def test_a_control_has_no_control() -> None:
    with pytest.raises(ConfigError, match="already"):
        control_config(control_config(QUICK))
