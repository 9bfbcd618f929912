"""Run folders, tokenizers and data made by an enemy who knows the formats: one line, or a harmless answer,
and nothing outside.

Each trial plants something in a copy of a small run, or a data file beside it, and then gives it to a command
that reads such things. The enemy reseals: after an edit the manifests fit again. What was planted must not
run, must not write outside the run, and must not take more than LIMIT_MEMORY; a command that has to refuse
ends with one line and exit code 2. What is planted: hostile_runs.py and hostile_data.py. How a command is
started and judged: fuzz.py.
"""

from __future__ import annotations

import hashlib
import os
import random
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from reliability import fuzz, nonsense
from reliability.trial import Trial

LIMIT_MEMORY = (
    1 << 30
)  # bytes of address space beyond what is loaded: no honest command on these small runs needs more


@dataclass(frozen=True)
class Case:
    """One thing that an enemy hands over."""

    group: str
    name: str
    plant: Callable[[Path], object]
    """Given the working folder, with the run in runs/tiny."""
    commands: tuple[tuple[str, ...], ...]
    """Who may be handed it; each trial takes one of them."""
    refused: bool = False
    """Whether only exit code 2 is right."""


def run(count: int | None, seed: int) -> list[Trial]:
    """`count` trials (None: every case with every command), drawn with the seed; each case has its turn
    before any has another.
    """
    from reliability import hostile_data, hostile_runs

    generator = random.Random(seed)
    cases = [*hostile_runs.cases(), *hostile_data.cases()]
    generator.shuffle(cases)  # so that a count below all of them has some of each group
    pairs = [(case, command) for case in cases for command in case.commands]
    by_case: dict[tuple[str, str], list[tuple[Case, tuple[str, ...]]]] = {}
    for pair in pairs:
        by_case.setdefault((pair[0].group, pair[0].name), []).append(pair)
    for choices in by_case.values():
        generator.shuffle(choices)
    longest = max(len(choices) for choices in by_case.values())
    ordered = [
        choices[turn] for turn in range(longest) for choices in by_case.values() if turn < len(choices)
    ]
    fuzz.LIMIT_MEMORY = LIMIT_MEMORY
    with tempfile.TemporaryDirectory() as folder:
        template = make_world(Path(folder) / "template")
        chosen = sorted(ordered[: count or len(ordered)], key=lambda pair: pair[0].group)
        return [trial(case, command, template, Path(folder) / "world") for case, command in chosen]


def make_world(place: Path) -> Path:
    """The world of fuzz.py, a run on its stories, and a folder that nothing may touch."""
    fuzz.make_world(place)
    wanted = ["train", "tinystories", *nonsense.TEXT, "--run-id", "words", "--allow-repeat"]
    code, _, err = fuzz.started(wanted, place)
    assert code == 0, err
    (place / "outside").mkdir()
    (place / "outside" / "notes.txt").write_text("all my notes\n")
    return place


def trial(case: Case, command: Sequence[str], template: Path, place: Path) -> Trial:
    """Plant, run the command, and look at everything outside the run."""
    shutil.copytree(template, place, symlinks=True)
    try:
        case.plant(place)
        before = fingerprint(place)
        code, out, err = fuzz.started(command, place)
        trouble = fuzz.judged(code, out, err, nonsense=case.refused)
        if trouble == "success on nonsense":
            trouble = f"exit code {code} where it had to refuse"
        changed = sorted(before.items() ^ fingerprint(place).items())
        trouble = trouble or (f"touched {changed[0][0]}" if changed else None)
    finally:
        shutil.rmtree(place)
    return Trial(case.group, f"{case.name}: {shlex.join(command)}", trouble is None, trouble or "")


def fingerprint(place: Path) -> dict[str, str]:
    """Every file outside the runs and the cache, and the SHA-256 of its content. A link counts as what it
    says.
    """
    return {str(path.relative_to(place)): content_of(path) for path in sorted(_outside(place))}


def _outside(place: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(place):
        folders[:] = [
            name for name in folders if Path(folder) != place or name not in {"runs", "cache", "made"}
        ]
        yield from (Path(folder) / name for name in files)


def content_of(path: Path) -> str:
    """What a file is, without following links or waiting for a pipe."""
    if path.is_symlink():
        return f"link to {path.readlink()}"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no regular file"


if __name__ == "__main__":
    found = run(int(sys.argv[1]), int(sys.argv[2]))
    print("\n".join(f"{one.group}: {one.name}\n    {one.outcome}" for one in found if not one.held))
    print(f"{sum(one.held for one in found)} of {len(found)} held")
