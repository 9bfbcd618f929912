"""Errors of the flag parser are one readable line, help names what a flag takes, and of a flag that is given
twice the last one counts.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bitnet.cli.flags import RunFlags, last_value, parse
from bitnet.cli.main import main
from bitnet.errors import ConfigError
from conftest import Command


@pytest.mark.slow
@pytest.mark.parametrize(
    ("encoding", "words", "line"),
    [
        ("utf-8", ["runs", "--x"], "bitnet: Unrecognized options: --x. See: bitnet runs --help"),
        ("ascii", ["runs", "--x"], "bitnet: Unrecognized options: --x. See: bitnet runs --help"),
        (
            "utf-8",
            ["train", "arithmetic", "--num-step", "3"],
            "bitnet: Unrecognized options: --num-step, 3. "
            'Did you mean "--num-steps"? See: bitnet train arithmetic --help',
        ),
        (
            "ascii",
            ["train", "arithmetic", "--variant", "reference", "--model.num-heads", "3"],
            "bitnet: Error parsing model: model.hidden_size 256 is not divisible by model.num_heads 3; "
            "change one of them."
            " See: bitnet train arithmetic --help",
        ),
    ],
)
def test_the_line_is_the_same_on_every_terminal(encoding: str, words: list[str], line: str) -> None:
    """The parser's box is drawn with other characters where the terminal has no Unicode."""
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    ended = subprocess.run(
        [sys.executable, "-m", "bitnet", *words], capture_output=True, text=True, env=environment, check=False
    )
    assert ended.returncode == 2
    assert ended.stderr == line + "\n"


def test_parsing_leaves_the_terminal_width_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "77")
    with pytest.raises(ConfigError):
        parse(RunFlags, ["--nothing"], "runs")
    assert os.environ["COLUMNS"] == "77"
    monkeypatch.delenv("COLUMNS")
    assert parse(RunFlags, ["--json"], "runs").json is True
    assert "COLUMNS" not in os.environ


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["evaluate"], "RUN is missing: Run id, directory, checkpoint, experiment name, or latest"),
        (
            ["tokenizer", "train"],
            "--vocab-size INT is missing: Entries, special tokens and the 256 bytes included; --out PATH is "
            "missing: ",
        ),
        (["train", "arithmetic", "--num-steps", "1e3"], "--num-steps is '1e3', which is not a whole number"),
        (["complete", "x", "y", "--max-new-tokens", "many"], "--max-new-tokens is 'many', which is not"),
        (["complete", "x", "y", "--top-p", "high"], "--top-p is 'high', which is not a number"),
        (["train", "arithmetic", "--resume", "no"], "--resume is 'no'; it must be one of auto, never, must"),
        (["train", "arithmetic", "--weights", "half"], "--weights is 'half'; it must be one of"),
        (["report", "--out"], "--out needs a value"),
    ],
)
def test_a_wrong_value_is_said_in_plain_words(
    words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert line in capsys.readouterr().err


def test_help_names_what_a_flag_takes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["complete", "--help"])
    page = capsys.readouterr().out
    assert "{None}" not in page
    assert "RUN" in page
    widths = {len(line) for line in page.splitlines() if line and line[0] in "│╭╰"}
    assert len(widths) == 1, "the frames are whole"


def test_an_action_is_named_and_others_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tokenizer", "trian"]) == 2
    assert 'Did you mean "train"?' in capsys.readouterr().err
    assert main(["voice"]) == 2
    assert "bitnet voice prompts, or bitnet voice answers" in capsys.readouterr().err
    assert main(["voice", "--help"]) == 0


TWICE = (
    ["--variant", "reference", "--variant", "quick"],
    ["--variant=reference", "--variant=quick"],
    ["--variant=reference", "--variant", "quick"],
    ["--variant", "reference", "--variant=quick"],
)


@pytest.mark.parametrize("words", TWICE, ids=" ".join)
def test_the_last_variant_counts_for_training_and_for_its_price(bitnet: Command, words: list[str]) -> None:
    """`cost` took the first one where `train` took the last, and so priced another run than the one that was
    trained.
    """
    trained = bitnet("train", "arithmetic", *words, "--device", "cpu", "--dry-run", "--json").json
    priced = bitnet("cost", "arithmetic", *words, "--json").json
    assert trained["variant"] == "quick"
    assert priced["name"] == "arithmetic (quick)"
    assert priced["training"] == {key: trained["training"][key] for key in priced["training"]} | {
        "stage1_end": None
    }


def test_the_last_one_counts_for_other_flags_too(bitnet: Command, runs: Path, tmp_path: Path) -> None:
    nowhere = ["--runs-dir", tmp_path / "nowhere", "--runs-dir", runs]
    assert bitnet("status", "tiny", *nowhere, "--json").json["run"] == "tiny"
    assert (
        bitnet(
            "train",
            "arithmetic",
            "--device",
            "cpu",
            "--from",
            "nothing",
            "--from",
            "tiny",
            *nowhere,
            "--dry-run",
        ).code
        == 0
    )
    trained = bitnet(
        "train", "arithmetic", "--device", "cpu", "--seed", 1, "--seed=2", "--dry-run", "--json"
    ).json
    assert trained["training"]["seed"] == 2


def test_a_flag_may_be_written_with_underscores(bitnet: Command, runs: Path) -> None:
    assert last_value(["--runs_dir", "a"], "--runs-dir") == "a"
    assert last_value(["x", "--runs-dir"], "--runs-dir") is None
    assert last_value(["runs-dir=b"], "--runs-dir") is None
    assert (
        bitnet(
            "train", "arithmetic", "--device", "cpu", "--from", "tiny", "--runs_dir", runs, "--dry-run"
        ).code
        == 0
    )
