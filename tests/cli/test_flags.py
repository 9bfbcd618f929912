"""Errors of the flag parser, condensed from the box it draws to one readable line."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from bitnet.cli.flags import parse
from bitnet.cli.runs import RunFlags
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
