"""Errors of the flag parser, condensed from the box it draws to one readable line."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from bitnet.cli.flags import RunFlags, parse
from bitnet.cli.main import main
from bitnet.errors import ConfigError


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
