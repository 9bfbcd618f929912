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
from conftest import TINY_TRAIN, Command

pytestmark = pytest.mark.slow


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
    "config cut": (
        lambda run: (run / "meta" / "config.json").write_text("{"),
        "config.json is not readable JSON",
    ),
    "config emptied": (lambda run: (run / "meta" / "config.json").write_text("{}"), "config.json"),
    "config without a model": (
        lambda run: set_config(run, lambda config: config.pop("model")),
        "config.json",
    ),
    "config with null": (
        lambda run: set_config(run, lambda config: config.update(model=None)),
        "config.json",
    ),
    "config of another type": (
        lambda run: set_config(run, lambda config: config["model"].update(num_layers="two")),
        "config.json",
    ),
    "config of another shape": (
        lambda run: set_config(run, lambda config: config["model"].update(num_layers=3)),
        "does not fit the model",
    ),
    "config of no variant": (
        lambda run: set_config(run, lambda config: config.update(variant="quikc")),
        'Did you mean "quick"',
    ),
    "config of no experiment": (
        lambda run: set_config(run, lambda config: config.update(experiment="arithmetics")),
        "arithmetics",
    ),
    "no tokenizer": (lambda run: shutil.rmtree(run / "tokenizer"), "there is no tokenizer"),
    "tokenizer cut": (lambda run: (run / "tokenizer" / "characters.json").write_text("{"), "is damaged"),
    "no checkpoints": (lambda run: shutil.rmtree(run / "checkpoints"), "has no checkpoint yet"),
    "no whole checkpoint": (empty_all_weights, "no checkpoint of tiny is whole"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_evaluating_a_damaged_run_is_one_line(name: str, bitnet: Command, runs: Path) -> None:
    """With a manifest the altered file is named; a run made before there was one fails where the damage
    matters.
    """
    damage, message = DAMAGES[name]
    damage(runs / "tiny")
    for made_before in (False, True):
        if made_before:
            (runs / "tiny" / "meta" / "manifest.json").unlink()
        result = bitnet(*EVALUATE, "--runs-dir", runs)
        assert result.code == 2
        if made_before or "checkpoint" in name:
            assert message in result.err
        else:
            assert ("config.json" if "config" in name else "characters.json") in result.err
        assert len(result.err.strip().splitlines()) == 1


ALTERED = [
    ('"ternary"', '"uernary"'),
    ('"ternary"', '"full"'),
    ('"rope_theta": 10000.0', '"rope_theta": 18192.0'),
]
READERS = [
    ["evaluate"],
    ["complete", "1 + 1 = "],
    ["diagnose"],
    ["report"],
    ["plot"],
    ["status"],
    ["runs"],
    ["train"],
]


@pytest.mark.parametrize(("old", "new"), ALTERED)
@pytest.mark.parametrize("words", READERS, ids=" ".join)
def test_one_altered_setting_never_changes_a_result_in_silence(
    words: list[str], old: str, new: str, bitnet: Command, runs: Path
) -> None:
    """`ternary` became `uernary` by one bit, and the evaluation was that of other weights, with exit code
    0.
    """
    path = runs / "tiny" / "meta" / "config.json"
    path.write_text(path.read_text().replace(old, new, 1))
    verb, *rest = words
    given = (
        [*TINY_TRAIN, "--num-steps", 8, "--train.checkpoint-every", 3, "--run-id"]
        if verb == "train"
        else [verb]
    )
    result = bitnet(*given, *([] if verb == "runs" else ["tiny"]), *rest, "--runs-dir", runs)
    assert result.code == (0 if verb in ("report", "status", "runs") else 2)
    assert "was altered since" in result.out + result.err


def test_a_lost_config_is_not_replaced_by_that_of_another_command(bitnet: Command, runs: Path) -> None:
    """The same command with other settings went on from the checkpoints of the run whose config was gone."""
    (runs / "tiny" / "meta" / "config.json").unlink()
    result = bitnet(
        *TINY_TRAIN, "--train.peak-lr", 0.1, "--num-steps", 9, "--run-id", "tiny", "--runs-dir", runs
    )
    assert result.code == 2
    assert "config.json" in result.err
    assert not (runs / "tiny" / "meta" / "config.json").exists()
    assert "config.json" in bitnet("evaluate", "tiny", "--runs-dir", runs).err


def test_a_tokenizer_that_is_not_the_runs_own_is_refused(bitnet: Command, runs: Path) -> None:
    """Also in a run without a manifest: its config records the tokenizer's SHA-256."""
    (runs / "tiny" / "meta" / "manifest.json").unlink()
    path = runs / "tiny" / "tokenizer" / "characters.json"
    path.write_text(path.read_text().replace("0123", "1023"))
    result = bitnet(*EVALUATE, "--runs-dir", runs)
    assert result.code == 2
    assert "holds another tokenizer" in result.err


def test_a_tokenizer_file_that_was_added_is_refused(bitnet: Command, runs: Path) -> None:
    """tokenizer.json would be taken before characters.json."""
    (runs / "tiny" / "tokenizer" / "tokenizer.json").write_text("{}")
    result = bitnet(*EVALUATE, "--runs-dir", runs)
    assert result.code == 2
    assert "tokenizer.json is not in" in result.err


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
    assert "skipping a damaged checkpoint" in newest.err
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
    "words",
    [
        ("complete", "tiny", "1 + 1 = "),
        ("complete", "tiny", "1 + 1 = ", "--temperature", 1),
        ("chat", "tiny", "-p", "1 + 1 = "),
    ],
)
def test_a_model_whose_logits_overflow_says_so_in_one_line(
    bitnet: Command, runs: Path, words: tuple[str, ...]
) -> None:
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
