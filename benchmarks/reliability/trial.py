"""What one trial found, and what a whole kind of trials adds up to. Not here: any trial."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

SHOWN_FAILURES = 20


class Trial(NamedTuple):
    """held: whether the promise held. outcome: what happened, in a few words; needed where it did not
    hold.
    """

    group: str
    """What the trial attacks: `config.json`, `inside a save`, `train`. Trials of a group are one row of the
    table."""
    name: str
    held: bool
    outcome: str


def summary(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """One row per group, in the order they came: how many trials, how many held, and the first that did
    not.
    """
    groups = dict.fromkeys(trial.group for trial in trials)
    return [_row(group, [trial for trial in trials if trial.group == group]) for group in groups]


def _row(group: str, trials: Iterable[Trial]) -> dict[str, Any]:
    found = list(trials)
    failures = [trial for trial in found if not trial.held]
    return {
        "group": group,
        "trials": len(found),
        "held": len(found) - len(failures),
        "failures": [{"name": trial.name, "outcome": trial.outcome} for trial in failures[:SHOWN_FAILURES]],
    }
