"""Files of a run emptied, cut, bit-flipped or deleted, one at a time: each is noticed, or it changes nothing.

A stopped run is resumed, and a finished one evaluated. Either the command ends with one line and exit code 2,
and no file of the run but its status has changed; or it ends well, and then weights, lines and metrics are
those of the run that nobody touched. A damaged checkpoint that is skipped for an older one, which is said, is
the second case for a resume; an evaluation may then differ.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from bitnet.train import loop
from reliability.tiny_run import RUN, Result, command, difference, outcome, train_words
from reliability.trial import Trial

STEPS, STOP = 12, 7
SKIPPED = "damaged checkpoint"
UNCHECKED = {".lock", "status.json"}  # files that a refused command may write


def empty(path: Path, draw: random.Random) -> None:
    """Nothing is left of it."""
    path.write_bytes(b"")


def cut(path: Path, draw: random.Random) -> None:
    """The end is lost."""
    content = path.read_bytes()
    path.write_bytes(content[: draw.randrange(max(len(content), 1))])


def flip(path: Path, draw: random.Random) -> None:
    """One bit is another."""
    content = bytearray(path.read_bytes())
    if content:
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(bytes(content))


def delete(path: Path, draw: random.Random) -> None:
    """It is gone."""
    path.unlink()


DAMAGES: dict[str, Callable[[Path, random.Random], None]] = {
    "emptied": empty,
    "cut": cut,
    "bit-flipped": flip,
    "deleted": delete,
}


def run(count: int | None, seed: int) -> list[Trial]:
    """`count` corruptions, 500 where None; half of a run to resume, half of one to evaluate."""
    torch.set_num_threads(1)
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        stopped, finished = _runs(folder)
        wanted = outcome(finished, STEPS)
        figures = command("evaluate", RUN, "--json", "--runs-dir", finished).out.strip().splitlines()[-1]
        metrics = {"step": STEPS, "metrics": json.loads(figures)["metrics"]}
        trials = []
        for number in range(count or 500):
            kind = list(DAMAGES)[number // 2 % len(DAMAGES)]
            source = finished if number % 2 else stopped
            runs = Path(shutil.copytree(source, folder / "trial"))
            path = draw.choice(
                sorted(
                    path for path in (runs / RUN).rglob("*") if path.is_file() and path.name not in UNCHECKED
                )
            )
            name = f"{path.relative_to(runs / RUN)} {kind}, then {'evaluate' if number % 2 else 'resume'}"
            DAMAGES[kind](path, draw)
            problem = _evaluate(runs, metrics) if number % 2 else _resume(runs, wanted)
            trials.append(Trial(kind, name, not problem, problem or "noticed or harmless"))
            shutil.rmtree(runs)
    return trials


def _runs(folder: Path) -> tuple[Path, Path]:
    """A run that a signal stopped, and one that is finished."""
    real = loop.train_steps

    def steps(*words: Any, **options: Any) -> Any:
        for report in real(*words, **options):
            if report.step == STOP:
                signal.raise_signal(signal.SIGTERM)
            yield report

    with patch("bitnet.train.start.train_steps", steps):
        assert command(*train_words(folder / "stopped", STEPS)).code == 128 + signal.SIGTERM
    assert command(*train_words(folder / "finished", STEPS)).code == 0
    return folder / "stopped", folder / "finished"


def _content(runs: Path) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes()
        for path in runs.rglob("*")
        if path.is_file() and path.name not in UNCHECKED
    }


def _resume(runs: Path, wanted: dict[str, Any]) -> str:
    before = _content(runs)
    result = command(*train_words(runs, STEPS))
    if result.refused:
        return "" if _content(runs) == before else "it was refused, and files were changed all the same"
    if result.code != 0:
        return f"exit code {result.code}: {result.last_line}"
    return difference(outcome(runs, STEPS), wanted)


def _evaluate(runs: Path, wanted: dict[str, Any]) -> str:
    result = command("evaluate", RUN, "--json", "--runs-dir", runs)
    if result.refused or (result.code == 0 and SKIPPED in result.err):
        return ""
    if result.code != 0:
        return f"exit code {result.code}: {result.last_line}"
    return _other_figures(result, wanted)


def _other_figures(result: Result, wanted: dict[str, Any]) -> str:
    found = json.loads(result.out.strip().splitlines()[-1])
    return (
        ""
        if {key: found[key] for key in wanted} == wanted
        else f"other figures without a word: step {found['step']}"
    )
