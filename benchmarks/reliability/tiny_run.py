"""The run that the trials attack: a model of 10,000 parameters, trained through `bitnet train` in seconds,
and what it must end with.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from bitnet.cli.main import main
from bitnet.files import sha256
from bitnet.run.layout import RunLayout

RUN = "tiny"
SHAPE = """
    --model.hidden-size 32 --model.num-layers 1 --model.num-heads 2 --model.num-kv-heads 1
    --model.ffn-hidden-size 64
""".split()
PERIODS = [
    f"--train.{what}-every={period}"
    for what, period in (("checkpoint", 4), ("eval", 5), ("probe", 5), ("sample", 5))
]
TIMED = {"step_time_ms", "tokens_per_sec", "process_mem_gb", "mfu"}  # what hangs on the clock and the machine


class Result(NamedTuple):
    """What a command did. code: as the shell sees it, 1000 for a traceback, which is in err."""

    code: int
    out: str
    err: str

    @property
    def last_line(self) -> str:
        """The last line of standard error, short enough for a table."""
        return (self.err.strip().splitlines() or ["nothing was said"])[-1][:200]

    @property
    def refused(self) -> bool:
        """Whether the command ended with one line and exit code 2."""
        return self.code == 2 and self.last_line.startswith(("bitnet: ", '{"error"'))


def train_words(runs: Path, steps: int) -> list[str]:
    """The command that begins or continues the run."""
    task = "--variant quick --device cpu --batch-size 8 --data.max-operand 9 --train.eval-cases 8".split()
    place = ["--num-steps", str(steps), "--run-id", RUN, "--runs-dir", str(runs)]
    return ["train", "arithmetic", *task, *SHAPE, *PERIODS, *place]


def command(*words: object) -> Result:
    """One command in this process, through the same door as the installed program."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([str(word) for word in words])
    except Exception as error:  # noqa: BLE001 - a traceback is what the trials look for
        return Result(1000, out.getvalue(), f"{err.getvalue()}\n{type(error).__name__}: {error}")
    return Result(code, out.getvalue(), err.getvalue())


def in_child(words: list[str], before: Callable[[], None] = lambda: None) -> int:
    """Start a command in a forked process, which need not import torch again. Returns its process id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(nowhere, number)
    code = 70
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        before()
        code = main(words)
    finally:
        os._exit(code)
    raise AssertionError


def outcome(runs: Path, steps: int) -> dict[str, Any]:
    """What a finished run determines: SHA-256 of its tensors, random states, and every line of every file
    without its times.
    """
    layout = RunLayout(runs / RUN)
    final = layout.checkpoint(steps)
    found: dict[str, Any] = {path.name: sha256(path) for path in sorted(final.glob("*.safetensors"))}
    found["random states"] = json.loads((final / "state.json").read_text())["rng_states"]
    for path in layout.line_files():
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        found[path.name] = [{key: value for key, value in row.items() if key not in TIMED} for row in rows]
    return found


def difference(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Where two outcomes differ; empty where they do not."""
    return ", ".join(sorted(key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key)))
