"""`bitnet diagnose NAME|RUN`: which part is broken? Examines a fresh model of an experiment, or a run."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from bitnet.cli.flags import RunFlags, parse
from bitnet.cli.foreign import refuse_foreign_places
from bitnet.cli.registry import config_of_run, experiment_names
from bitnet.errors import NotFoundError
from bitnet.terminal import send

if TYPE_CHECKING:
    from bitnet.diagnose.finding import Check
    from bitnet.diagnose.subject import Subject


@dataclass(frozen=True, kw_only=True)
class DiagnoseFlags(RunFlags):
    """Flags of `bitnet diagnose`. With an experiment's name, those of `bitnet train` that change its
    configuration too.
    """

    name: Positional[str]
    """An experiment (a fresh model of it is examined), or a run: id, directory, checkpoint, or latest."""
    variant: str | None = None
    """Which variant of the experiment."""
    full: bool = False
    """Also the slow checks: one batch learned to near zero, and the control with full-precision weights."""
    device: str = "auto"
    """auto, cpu or cuda."""
    experiment: Path | None = None
    """The file of the run's experiment, where it is your own: a file that only the run names is never
    executed."""
    trust: bool = False
    """Read and write what a run of somebody else names outside its folder."""


def main(arguments: Sequence[str]) -> int:
    """Print the page; 0 where nothing is suspected, 1 where a part is, 2 where the examination failed."""
    full, words = "--full" in arguments, [word for word in arguments if word != "--full"]
    named = experiment_word(words)
    if named:
        subject = of_experiment(named, [word for word in words if word != named], full)
    else:
        subject = of_run(parse(DiagnoseFlags, arguments, "diagnose"))
    from bitnet.diagnose.diagnosis import diagnose
    from bitnet.diagnose.page import page

    found = diagnose(subject, show_progress)
    if sys.stderr.isatty():
        send(sys.stderr, "\r" + " " * 90 + "\r")

    in_json = "--json" in arguments
    text = page(found.name, found.checks, found.verdict, found.rows)
    print(text, file=sys.stderr if in_json else sys.stdout)
    if in_json:
        print(json.dumps(found.to_json()))
    return 0 if found.verdict.healthy else 2 if found.verdict.suspect == "none" else 1


def show_progress(number: int, check: Check) -> None:
    """Show a person the number of checks made, in one line that the next one overwrites."""
    if sys.stderr.isatty():
        send(sys.stderr, "\r")
        print(f"{number} checks, last: {check.name[:60]:<60}", end="", file=sys.stderr, flush=True)


def experiment_word(words: Sequence[str]) -> str | None:
    """The experiment that is meant, if one is: its name or its file, not the value of a flag."""
    names = experiment_names()
    for before, word in zip(["", *words], words, strict=False):
        is_value = before.startswith("--") and "=" not in before and before != "--json"
        if not is_value and (word in names or word.endswith(".py")):
            return word
    return None


def of_experiment(name: str, flags: Sequence[str], full: bool) -> Subject:
    """A fresh model of an experiment and its data."""
    from bitnet.cli.train import make_data_ready, resolve
    from bitnet.diagnose.open_subject import open_experiment
    from bitnet.train.device import choose_device

    if {"-h", "--help"} & set(flags):
        parse(DiagnoseFlags, ["--help"], "diagnose")
    experiment, variant, options, config = resolve([name, *flags])
    make_data_ready(experiment, config, lambda text: print(text, file=sys.stderr, flush=True))
    return open_experiment(experiment, variant, config, choose_device(options.device), full=full)


def of_run(flags: DiagnoseFlags) -> Subject:
    """A run with its checkpoint and its files."""
    from bitnet.diagnose.open_subject import open_run
    from bitnet.run.layout import find_run
    from bitnet.train.device import choose_device

    if flags.variant is not None:
        raise NotFoundError(
            f"there is no experiment {flags.name!r}, and --variant belongs to experiments; leave it out for "
            "a run"
        )
    reference = find_run(flags.name, flags.runs_dir)
    experiment, variant, config = config_of_run(reference.layout, flags.experiment)
    refuse_foreign_places(reference.layout, config, trust=flags.trust)
    return open_run(reference, experiment, variant, config, choose_device(flags.device), full=flags.full)
