"""A few of the hostile commands that `python benchmarks/reliability --commands 1000` tries, and those that
once got through.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from conftest import TINY_TRAIN, Command
from reliability import fuzz, nonsense

pytestmark = pytest.mark.slow


HUGE = 9223372036854775807
LONG = "a" * 300


def test_a_few_dozen_commands_with_nonsense(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn with a seed: the same ones each time. A failure shows the command."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert list(fuzz.failures(fuzz.run(40, seed=3))) == []


def test_every_command_has_a_base_that_is_listed_with_its_flags() -> None:
    from bitnet.cli.main import VERBS

    assert {command.split()[0] for command in nonsense.BASES} == set(VERBS)
    names = {flag.name for flag in nonsense.flags_of("train tinystories")}
    assert {"--data", "--train.peak-lr", "--model.num-layers", "--data.eval-sequences"} <= names


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*TINY_TRAIN, "--num-steps", HUGE], f"--num-steps is {HUGE}; it must be at most"),
        ([*TINY_TRAIN, "--model.hidden-size", HUGE], f"model.hidden_size is {HUGE}; it must be at most"),
        ([*TINY_TRAIN, "--train.peak-lr", "3.5e38"], "train.peak_lr is 3.5e+38; it must be at most 1000.0"),
        ([*TINY_TRAIN, "--run-id", LONG], "use 1 to 64 letters"),
        (["train", f"{LONG}.py"], "File name too long"),
        (["evaluate", LONG], "File name too long"),
        (["evaluate", f"{LONG}/x"], "File name too long"),
        (["evaluate", "tiny", "--show", "-1"], "--show is -1; it must be at least 0"),
        (["plot", "tiny", "--out", f"{LONG}.png"], "File name too long"),
        (["complete", "tiny", "1", "--temperature", "1e-45"], "temperature is 1e-45"),
        (["complete", "tiny", "1", "--max-new-tokens", HUGE], f"--max-new-tokens is {HUGE}"),
    ],
)
def test_what_once_got_through(bitnet: Command, runs: Path, words: list[str], message: str) -> None:
    result = bitnet(*words, "--runs-dir", runs)
    assert result.code == 2
    assert message in result.err
    assert len(result.err.splitlines()) == 1


def test_an_absurd_number_of_prompts_is_refused_at_once(bitnet: Command, tmp_path: Path) -> None:
    """It built a list of a million numbers for each batch, for hours."""
    result = bitnet(
        "voice", "prompts", "--teacher", "rules", "--per-batch", 1_000_003, "--out", tmp_path / "out"
    )
    assert result.err == "bitnet: --per-batch is 1000003; it must be at most 1000\n"


def test_a_pipe_is_not_waited_for(bitnet: Command, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for words in (
        ("voice", "prompts", "--teacher", "rules", "--out", tmp_path / "out", "--topics"),
        ("cost", "1B", "--devices"),
    ):
        result = bitnet(*words, tmp_path / "pipe")
        assert result.code == 2
        assert "is not a regular file" in result.err


def test_a_folder_of_runs_that_is_not_there_is_an_error(
    bitnet: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`runs --runs-dir NOWHERE` said that there are no runs yet and succeeded; without the flag that is the
    truth.
    """
    assert bitnet("runs", "--runs-dir", tmp_path / "nowhere").code == 2
    monkeypatch.chdir(tmp_path)
    assert bitnet("runs").code == 0


def test_a_model_larger_than_the_machine_is_refused_before_it_is_built(
    bitnet: Command, tmp_path: Path
) -> None:
    sizes = ["--model.hidden-size", 65536, "--model.ffn-hidden-size", 262_144, "--model.num-layers", 100]
    result = bitnet(*TINY_TRAIN, *sizes, "--runs-dir", tmp_path)
    assert result.code == 2
    assert "for weights, gradients and optimizer alone, and the machine has" in result.err
