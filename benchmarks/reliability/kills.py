"""SIGKILL at random moments of a training run, until it gets through: the outcome must be that of a run that
nothing interrupts.

Half of the kills come from outside, at a random time. The other half happen inside the writing of a
checkpoint: the process kills itself at a random one of the moments at which a file or folder is forced to
disk there.
"""

from __future__ import annotations

import os
import random
import signal
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

import bitnet.run.checkpoint as checkpoints
from bitnet.run.layout import RunLayout
from reliability.tiny_run import RUN, command, difference, in_child, outcome, train_words
from reliability.trial import Trial

STEPS = 40
KILLS_OF_A_RUN = 4  # so that a resumed run is killed as well
SYNCS_OF_A_SAVE = 9


def run(count: int | None, seed: int) -> list[Trial]:
    """`count` kills, 100 where None."""
    torch.set_num_threads(1)
    draw = random.Random(seed)
    trials: list[Trial] = []
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        assert command(*train_words(Path(folder) / "whole", STEPS)).code == 0
        seconds, wanted = time.perf_counter() - started, outcome(Path(folder) / "whole", STEPS)
        while len(trials) < (count or 100):
            runs = Path(folder) / f"killed_{len(trials)}"
            killed = _killed(runs, draw, seconds, min(KILLS_OF_A_RUN, (count or 100) - len(trials)))
            problem = _finish(runs, wanted)
            trials += [
                Trial(group, name, not problem, problem or "same weights and lines") for group, name in killed
            ]
    return trials


def _killed(runs: Path, draw: random.Random, seconds: float, wanted: int) -> list[tuple[str, str]]:
    """Kill one run this many times, half of them inside a save. Returns the kills."""
    done: list[tuple[str, str]] = []
    for number in range(20 * wanted):
        if len(done) == wanted:
            break
        if number % 2:
            moment = draw.randint(1, 2 * SYNCS_OF_A_SAVE)
            child = in_child(train_words(runs, STEPS), partial(_die_in_save, moment))
            name = f"at the {moment}. sync of saves"
        else:
            child = in_child(train_words(runs, STEPS))
            delay = draw.uniform(0.05, 0.9 * seconds)
            time.sleep(delay)
            os.kill(child, signal.SIGKILL)
            name = f"after {delay:.2f} s"
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):  # else it was done before the kill came
            steps = RunLayout(runs / RUN).checkpoint_steps()
            done.append(
                ("inside a save" if number % 2 else "at a random moment", f"{name}, checkpoints then {steps}")
            )
        if RunLayout(runs / RUN).checkpoint(STEPS).is_dir():
            break
    return done


def _die_in_save(moment: int) -> None:
    """Let this process kill itself at the n-th time that a save forces something to disk."""
    real, saving, seen = checkpoints.save_checkpoint, [False], [0]
    fsync = os.fsync

    def counted(descriptor: int) -> None:
        if saving[0]:
            seen[0] += 1
            if seen[0] == moment:
                os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)

    def save(*words: Any) -> Path:
        saving[0] = True
        try:
            return real(*words)
        finally:
            saving[0] = False

    patch("os.fsync", counted).start()  # this process does not outlive them
    patch("bitnet.train.observe.checkpoints.save_checkpoint", save).start()


def _finish(runs: Path, wanted: dict[str, Any]) -> str:
    """Continue the run to its end. Returns what is wrong with the outcome, or nothing."""
    result = command(*train_words(runs, STEPS))
    if result.code != 0:
        return f"the run does not continue: {result.last_line}"
    return difference(outcome(runs, STEPS), wanted)
