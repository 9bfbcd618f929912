"""Run directories that something else has touched: one line, exit code 2, and what is whole is still used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitnet.run.checkpoint import load_checkpoint, save_checkpoint
from bitnet.run.layout import RunLayout
from conftest import TINY_TRAIN, Result

Command = Callable[..., Result]
EVALUATE = ("evaluate", "tiny")


def set_config(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = run / "meta" / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def empty_all_weights(run: Path) -> None:
    for folder in (run / "checkpoints").iterdir():
        (folder / "model.safetensors").write_bytes(b"")


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "config cut": (lambda run: (run / "meta" / "config.json").write_text("{"), "config.json is not readable JSON"),
    "config emptied": (lambda run: (run / "meta" / "config.json").write_text("{}"), "config.json"),
    "config without a model": (lambda run: set_config(run, lambda config: config.pop("model")), "config.json"),
    "config with null": (lambda run: set_config(run, lambda config: config.update(model=None)), "config.json"),
    "config of another type": (lambda run: set_config(run, lambda config: config["model"].update(num_layers="two")), "config.json"),
    "config of another shape": (lambda run: set_config(run, lambda config: config["model"].update(num_layers=3)), "does not fit the model"),
    "config of no variant": (lambda run: set_config(run, lambda config: config.update(variant="quikc")), 'Did you mean "quick"'),
    "config of no experiment": (lambda run: set_config(run, lambda config: config.update(experiment="arithmetics")), "arithmetics"),
    "no tokenizer": (lambda run: shutil.rmtree(run / "tokenizer"), "there is no tokenizer"),
    "tokenizer cut": (lambda run: (run / "tokenizer" / "characters.json").write_text("{"), "is damaged"),
    "no checkpoints": (lambda run: shutil.rmtree(run / "checkpoints"), "has no checkpoint yet"),
    "no whole checkpoint": (empty_all_weights, "no checkpoint of tiny is whole"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_evaluating_a_damaged_run_is_one_line(name: str, bitnet: Command, runs: Path) -> None:
    damage, message = DAMAGES[name]
    damage(runs / "tiny")
    result = bitnet(*EVALUATE, "--runs-dir", runs)
    assert result.code == 2
    assert message in result.err
    assert len(result.err.strip().splitlines()) == 1


def test_a_checkpoint_named_by_its_step_is_not_replaced_by_another(bitnet: Command, runs: Path) -> None:
    """Who asks for step 8 wants step 8; only `the newest` may mean an older one, and then says so."""
    folder = runs / "tiny" / "checkpoints" / "step_000008"
    (folder / "model.safetensors").write_bytes(b"")
    named = bitnet("evaluate", folder, "--runs-dir", runs)
    assert named.code == 2
    assert "step_000008: model.safetensors has 0 bytes" in named.err
    newest = bitnet(*EVALUATE, "--json", "--runs-dir", runs)
    assert newest.code == 0
    assert newest.json["step"] == 6
    assert "passing over a damaged checkpoint" in newest.err
    assert "step_000008" in newest.err


def test_a_damaged_neighbour_stops_nothing(bitnet: Command, runs: Path) -> None:
    """Listing, judging by the experiment's name, and beginning another run."""
    neighbour = runs / "neighbour" / "meta"
    neighbour.mkdir(parents=True)
    (neighbour / "config.json").write_text("{")
    assert bitnet("evaluate", "arithmetic", "--json", "--runs-dir", runs).json["run"] == "tiny"
    assert {row["run"] for row in bitnet("runs", "--json", "--runs-dir", runs).json} == {"tiny", "neighbour"}
    assert bitnet(*TINY_TRAIN, "--num-steps", 1, "--run-id", "next", "--runs-dir", runs).code == 0


def test_a_seed_beyond_every_generator_is_refused(bitnet: Command, tmp_path: Path) -> None:
    result = bitnet(*TINY_TRAIN, "--num-steps", 1, "--seed", 2**70, "--runs-dir", tmp_path / "runs")
    assert result.code == 2
    assert "train.seed" in result.err


@pytest.mark.parametrize(
    "words", [("complete", "tiny", "1 + 1 = "), ("complete", "tiny", "1 + 1 = ", "--temperature", 1), ("chat", "tiny", "-p", "1 + 1 = ")]
)
def test_a_model_whose_logits_overflow_says_so_in_one_line(bitnet: Command, runs: Path, words: tuple[str, ...]) -> None:
    """Every weight is finite, so the checkpoint is good; what it computes is not."""
    layout = RunLayout(runs / "tiny")
    last = load_checkpoint(layout.checkpoint(8))
    last.model["final_norm.weight"].fill_(3e38)
    last.model["token_embeddings.weight"].mul_(1e4)
    save_checkpoint(layout, last)
    result = bitnet(*words, "--runs-dir", runs)
    assert result.code == 2
    assert "logits are NaN or infinite" in result.err
    assert len(result.err.strip().splitlines()) == 1
