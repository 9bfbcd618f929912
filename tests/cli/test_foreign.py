"""A run folder from somebody else is data: it runs no code, and reads and writes nothing outside of itself
unasked.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitnet.run.layout import RunLayout
from bitnet.run.manifest import write_manifest
from conftest import TINY_MODEL, TINY_TRAIN, Command
from corpora import stories, write_txt

EVIL = "from pathlib import Path\nPath({canary!r}).write_text('executed')\n"


def rewrite(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Edit meta/config.json as somebody who knows the format would: with a manifest that fits again, where
    there is one.
    """
    path = run / "meta" / "config.json"
    config = json.loads(path.read_text())
    change(config)
    text = json.dumps(config, indent=2) + "\n"
    write_manifest(RunLayout(run), text)
    path.write_text(text)


@pytest.mark.parametrize(
    "verb", [("evaluate",), ("diagnose",), ("compare", "tiny2")], ids=lambda words: words[0]
)
@pytest.mark.parametrize("key", ["experiment_file", "experiment"])
def test_a_file_that_a_run_names_is_not_executed(
    verb: tuple[str, ...], key: str, bitnet: Command, runs: Path, tmp_path: Path
) -> None:
    shutil.copytree(runs / "tiny", runs / "tiny2")
    evil, canary = tmp_path / "evil.py", tmp_path / "canary"
    evil.write_text(EVIL.format(canary=str(canary)))
    rewrite(runs / "tiny", lambda config: config.update({key: str(evil)}))
    result = bitnet(verb[0], "tiny", *verb[1:], "--runs-dir", runs)
    assert not canary.exists()
    assert result.code == 2
    assert "--experiment" in result.err


def test_a_named_file_must_define_what_the_run_trained(bitnet: Command, runs: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.py"
    other.write_text("from bitnet.experiments.tictactoe.task import experiment\n")
    result = bitnet("evaluate", "tiny", "--experiment", other, "--runs-dir", runs)
    assert result.code == 2
    assert "but tiny trained 'arithmetic'" in result.err


@pytest.fixture
def text_run(bitnet: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's own run on the user's own text."""
    monkeypatch.chdir(tmp_path)
    write_txt(tmp_path / "stories.txt", stories(300))
    result = bitnet(
        "train",
        "tinystories",
        "--variant",
        "quick",
        "--device",
        "cpu",
        *TINY_MODEL,
        "--model.vocab-size",
        300,
        "--num-steps",
        1,
        "--batch-size",
        2,
        "--seq-len",
        16,
        "--train.compile",
        "off",
        "--data",
        "stories.txt",
        "--allow-repeat",
        "--run-id",
        "words",
        "--data.judged-prompts",
        2,
        "--data.judged-sequences",
        2,
        "--data.held-out-one-in",
        10,
    )
    assert result.code == 0, result.err
    return tmp_path / "runs" / "words"


@pytest.mark.slow
def test_the_users_own_run_reads_the_users_own_data(bitnet: Command, text_run: Path) -> None:
    assert bitnet("evaluate", "words").code == 0


@pytest.mark.slow
def test_a_foreign_run_writes_no_cache_and_reads_no_data_unless_trusted(
    bitnet: Command, text_run: Path, tmp_path: Path
) -> None:
    rewrite(text_run, lambda config: config["data"].update(cache_dir=str(tmp_path / "planted")))
    for verb in ("evaluate", "diagnose"):
        result = bitnet(verb, "words")
        assert result.code == 2
        assert "--trust" in result.err
        assert "planted" in result.err
        assert len(result.err.strip().splitlines()) == 1
    assert not (tmp_path / "planted").exists()
    assert bitnet("evaluate", "words", "--data", "stories.txt").code == 0, (
        "a text of the user's own needs no trust"
    )
    assert bitnet("evaluate", "words", "--trust").code == 0
    assert (tmp_path / "planted").exists()


def test_start_from_of_a_foreign_run_is_not_followed(bitnet: Command, runs: Path, tmp_path: Path) -> None:
    rewrite(runs / "tiny", lambda config: config["training"].update(start_from="/dev/zero"))
    result = bitnet("evaluate", "tiny", "--runs-dir", runs)
    assert result.code == 2
    assert "training.start_from" in result.err


def test_training_names_what_it_reads_itself(bitnet: Command, runs: Path) -> None:
    """`train` takes every path from its own command line, so a foreign run of the same configuration adds
    none.
    """
    (runs / "tiny" / "meta" / "signature.json").unlink()
    result = bitnet(
        *TINY_TRAIN, "--num-steps", 8, "--train.checkpoint-every", 3, "--run-id", "tiny", "--runs-dir", runs
    )
    assert result.code == 0, result.err
