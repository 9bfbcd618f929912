"""A disk that is full at the n-th write of a command, for every n: the command ends with one line, and every
earlier file is intact.

A write is the opening of a file for writing below a folder, the forcing of one to disk, or the library's
writing of tensors, which has an error of its own. All writes from the n-th on fail.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from reliability.tiny_run import RUN, Result, command, train_words
from reliability.trial import Trial

STEPS = 4
TOKENIZER = ("tokenizer", "train", "--vocab-size", 24, "--kind", "characters")
Words = Callable[[Path], list[object]]


class FullDisk:
    """Inside `with`, the disk below `folder` is full after `left` writes. hit: whether it became full."""

    def __init__(self, folder: Path, left: int) -> None:
        self.folder, self.left, self.hit = str(folder), left, False
        self.open, self.fsync, self.save = io.open, os.fsync, safetensors.torch.save_file

    def __enter__(self) -> FullDisk:
        self._put(self._open, self._fsync, self._save)
        return self

    def __exit__(self, *error: object) -> None:
        self._put(self.open, self.fsync, self.save)

    def _put(self, opened: Any, fsync: Any, save: Any) -> None:
        for module in (io, builtins):
            module.open = opened  # type: ignore[attr-defined]
        os.fsync, safetensors.torch.save_file = fsync, save

    def _spend(self) -> None:
        self.left -= 1
        if self.left < 0:
            self.hit = True
            raise OSError(errno.ENOSPC, "No space left on device")

    def _open(self, file: Any, mode: str = "r", *words: Any, **options: Any) -> Any:
        if set(mode) & set("wax+") and str(file).startswith(self.folder):
            self._spend()
        return self.open(file, mode, *words, **options)

    def _fsync(self, descriptor: int) -> None:
        self._spend()
        self.fsync(descriptor)

    def _save(self, tensors: Any, path: Any) -> None:
        try:
            self._spend()
        except OSError:
            raise SafetensorError(
                "Error while serializing: I/O error: No space left on device (os error 28)"
            ) from None
        self.save(tensors, path)


def _of_runs(*words: object) -> Words:
    return lambda home: [*words, "--runs-dir", home / "runs"]


COMMANDS: dict[str, Words] = {
    "train": lambda home: [*train_words(home / "begun", STEPS)],
    "evaluate": _of_runs("evaluate", RUN),
    "plot": _of_runs("plot", RUN),
    "report": _of_runs("report", RUN),
    "report --card": _of_runs("report", RUN, "--card"),
    "compare": lambda home: ["compare", RUN, home / "runs" / "twin", "--runs-dir", home / "runs"],
    "prepare": lambda home: ["prepare", "arithmetic", "--out", home / "out.txt", "--count", 20],
    "prepare --data": lambda home: [
        *("prepare", "--data", home / "stories.txt", "--tokenizer", home / "made"),
        *("--out", home / "shards", "--processes", 1),
    ],
    "tokenizer train": lambda home: [*TOKENIZER, "--data", home / "stories.txt", "--out", home / "again"],
    "voice prompts": lambda home: [
        *("voice", "prompts", "--topics", home / "topics.txt", "--teacher", "rules"),
        *("--out", home / "prompts", "--batches", 1),
    ],
    "voice answers": lambda home: [
        *("voice", "answers", "--prompts", home / "asked", "--teacher", "rules"),
        *("--out", home / "answers"),
    ],
}


def make_home(home: Path) -> None:
    """Make what the commands need: a run and its twin, stories, a tokenizer, topics and prompts."""
    texts = (f"Story {number}: a cat sat on mat {number}." * 9 for number in range(400))
    (home / "stories.txt").write_text("\n<|endoftext|>\n".join(texts))
    (home / "topics.txt").write_text("".join(f"topic number {number}\n" for number in range(4)))
    made = [
        command(*train_words(home / "runs", STEPS)),
        command(*TOKENIZER, "--data", home / "stories.txt", "--out", home / "made"),
        command(
            "voice", "prompts", "--topics", home / "topics.txt", "--teacher", "rules", "--out", home / "asked"
        ),
    ]
    assert [result.code for result in made] == [0, 0, 0], made
    shutil.copytree(home / "runs" / RUN, home / "runs" / "twin")


def trials_of(name: str, home: Path, most: int | None = None) -> list[Trial]:
    """One command on a disk that is full at its first, second ... write, up to `most` times."""
    before = content(home)
    trials: list[Trial] = []
    while most is None or len(trials) < most:
        with FullDisk(home, len(trials)) as disk:
            result = command(*COMMANDS[name](home))
        if not disk.hit:
            return trials
        problem = _problem(name, result) or _lost(before, content(home))
        trials.append(
            Trial(
                name, f"write {len(trials) + 1} of {name}", not problem, problem or "one line, nothing lost"
            )
        )
    return trials


def _problem(name: str, result: Result) -> str:
    """What is wrong with the end of a command. `evaluate` may show a result and say that it is not kept."""
    if name == "evaluate" and result.code in (0, 1) and "is not kept" in result.last_line:
        return ""
    if not result.refused or "No space left" not in result.last_line or "done at step" in result.out:
        return f"exit code {result.code}: {result.last_line}"
    return ""


def _lost(before: dict[str, bytes], after: dict[str, bytes]) -> str:
    lost = [path for path, was in before.items() if after.get(path) != was]
    return f"lost or altered: {', '.join(lost[:3])}" if lost else ""


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, locks left out."""
    return {
        str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"
    }


def run(count: int | None, seed: int) -> list[Trial]:
    """Every write of every command, in order, or the first `count` of each command. Nothing is drawn."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        make_home(Path(folder))
        return [trial for name in COMMANDS for trial in trials_of(name, Path(folder), count)]
