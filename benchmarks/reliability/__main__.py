"""Repeat the large trials of reliability, and record how many held.

    python benchmarks/reliability --kills 100 --corruptions 500 --full-disk all --commands 1000 --hostile 200
    python benchmarks/reliability --hostile 200 --seed 7    # one kind only; the other results stay

A kind is a module of this folder with `run(count, seed) -> list[Trial]`; count is None for `all`. Trials are
drawn with the seed, so that a failure can be repeated. Results go to benchmarks/results/reliability.json with
commit, hardware, torch and threads, and from there into docs/reliability.md (benchmarks/readme.py). Exit code
1 where a promise did not hold.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
# for this process and those that it starts, because results repeat for equal threads only
os.environ.setdefault("OMP_NUM_THREADS", "1")

from hardware import RESULTS, where
from reliability.trial import Trial, summary

KINDS = {
    "kills": ("kills", "runs killed at a random moment, half of them inside the writing of a checkpoint"),
    "corruptions": ("corruptions", "files of a run emptied, cut, bit-flipped or deleted"),
    "full_disk": ("full disk", "a disk that is full at one of the writes of a command"),
    "fuzz": ("commands", "commands with nonsense in their flags"),
    "hostile_files": ("hostile", "run folders, tokenizers and data made by an enemy"),
}
"""Module of each kind: its flag, and what it tries."""
FILE = RESULTS / "reliability.json"


def recorded() -> dict[str, Any]:
    """Results so far, by kind."""
    return dict(json.loads(FILE.read_text(encoding="utf-8"))) if FILE.is_file() else {}


def record(kind: str, trials: Sequence[Trial], seed: int, seconds: float) -> None:
    """Replace the results of one kind."""
    entry = {"where": where(), "seed": seed, "seconds": round(seconds), "rows": summary(trials)}
    RESULTS.mkdir(exist_ok=True)
    FILE.write_text(json.dumps({**recorded(), kind: entry}, indent=1) + "\n", encoding="utf-8")


def count_of(word: str) -> int | None:
    """A number of trials, or None for all that there are."""
    return None if word == "all" else int(word)


def present() -> dict[str, tuple[str, str]]:
    """The kinds whose module is here."""
    return {kind: about for kind, about in KINDS.items() if importlib.util.find_spec(f"reliability.{kind}")}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the kinds that were asked for; 1 where a promise did not hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for kind, (flag, about) in present().items():
        parser.add_argument(f"--{flag.replace(' ', '-')}", dest=kind, metavar="COUNT|all", help=about)
    parser.add_argument("--seed", type=int, default=1, help="draws the trials")
    parser.add_argument("--dry-run", action="store_true", help="record nothing")
    options = vars(parser.parse_args(arguments))
    failed = 0
    for kind in (kind for kind in present() if options[kind] is not None):
        started = time.perf_counter()
        trials: list[Trial] = importlib.import_module(f"reliability.{kind}").run(
            count_of(options[kind]), options["seed"]
        )
        for row in summary(trials):
            print(f"{kind:<14} {row['group']:<40} {row['held']:>5} of {row['trials']:>5} held", flush=True)
        for trial in (trial for trial in trials if not trial.held):
            print(f"  FAILED {trial.group}: {trial.name}: {trial.outcome}", flush=True)
            failed += 1
        if not options["dry_run"]:
            record(kind, trials, options["seed"], time.perf_counter() - started)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
