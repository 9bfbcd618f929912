"""Measured results of the variants, from measured.json, which `benchmarks/record.py` writes from finished
runs.

One row is one run. The rows of a variant that read the same data and differ only in the seed are one result:
its verdict is PASS when at least three seeds were run and each of them meets every criterion, and its figures
are shown with their spread. What a single seed did is said in words, since another seed may miss a criterion
that this one met by luck.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from bitnet.units import figure

Row = dict[str, Any]
SEEDS_FOR_A_VERDICT = 3


@dataclass(frozen=True)
class Result:
    """The runs of one variant that differ only in their seed, newest last. Never empty."""

    rows: tuple[Row, ...]

    @property
    def newest(self) -> Row:
        """The run that was recorded last."""
        return self.rows[-1]

    @property
    def verdict(self) -> str:
        """`PASS (3 of 3 seeds)`, or in words how many of the seeds pass."""
        passed, count = sum(row["verdict"] == "PASS" for row in self.rows), len(self.rows)
        seeds = f"{passed} of {count} seed{'s' if count > 1 else ''}"
        if passed == count >= SEEDS_FOR_A_VERDICT:
            return f"PASS ({seeds})"
        return f"{seeds} {'passes' if 1 in (passed, count) else 'pass'}"

    @property
    def figures(self) -> str:
        """The metrics that count, each as one figure, or as its lowest and highest over the seeds."""
        return ", ".join(f"{name} {self._spread(name)}" for name in self.newest["shown"])

    def _spread(self, name: str) -> str:
        values = [row["metrics"][name] for row in self.rows if name in row["metrics"]]
        return between([shown(name, value) for value in (min(values), max(values))])

    @property
    def data(self) -> str:
        """What was really read: the data set's name, and how much of it there was."""
        dataset = self.newest["dataset"]
        return (
            f"{dataset['name']} ({dataset['count']:,} {dataset['unit']})"
            if dataset["count"]
            else str(dataset["name"])
        )


def between(texts: Sequence[str]) -> str:
    """The lowest and the highest of some figures as `a to b`, or one of them where they look the same."""
    return texts[0] if texts[0] == texts[-1] else f"{texts[0]} to {texts[-1]}"


def shown(name: str, value: float) -> str:
    """Counts without decimals, shares with four, and more where those would say 1 for what is not quite 1."""
    return f"{value:.0f}" if name.startswith(("losses", "draws", "wins", "illegal")) else figure(value)


@cache
def measured() -> list[Row]:
    """All recorded runs, newest last."""
    path = Path(__file__).with_name("measured.json")
    rows: list[Row] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    return rows


def results() -> list[Result]:
    """The recorded runs by experiment, variant, weights, budget, data set and settings, in the order in which
    each first appeared.
    """
    groups: dict[str, list[Row]] = {}
    for row in measured():
        kind = [row[key] for key in ("experiment", "variant", "weights", "tokens", "dataset", "settings")]
        groups.setdefault(json.dumps(kind, sort_keys=True), []).append(row)
    return [Result(tuple(rows)) for rows in groups.values()]


def measured_result(name: str, variant: str) -> str | None:
    """The newest result of a variant in one line, its control's left aside, or None."""
    wanted = (name, variant, "ternary")
    found = [
        one
        for one in results()
        if tuple(one.newest[key] for key in ("experiment", "variant", "weights")) == wanted
    ]
    if not found:
        return None
    row = found[-1].newest
    facts = (
        f"{row['tokens']:,} tokens of {found[-1].data}, {row['hardware']}, {row['minutes']:.1f} min, commit "
        f"{row['commit']}"
    )
    return f"{found[-1].figures}: {found[-1].verdict} ({facts})"
