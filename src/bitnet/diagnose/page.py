"""The examination as text: each check with what was measured and what should be, then the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bitnet.diagnose.finding import Check
from bitnet.diagnose.verdict import Verdict

ORDER = "data quantization gradients optimizer evaluation decoding checkpoint training size".split()
TITLES = {"quantization": "forward pass and quantization"}
"""Titles of parts that are not called as their suspect."""
ELSEWHERE = (" twin", ", late updates")
"""Ends of the names of checks that are made again elsewhere; those that hold are only counted on the page."""


def line(check: Check) -> str:
    """One check in one line; a failed one says what it means and who says what should be."""
    mark = "ok  " if check.ok else "FAIL" if check.examined else "??  "
    head = f"  {mark}  {check.name}: {shown(check.value)}   expected {check.expected}"
    return head if check.ok else f"{head}\n        {check.detail} [{check.source}]"


def shown(value: Any) -> str:
    """A measured value, short."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {shown(item)}" for key, item in value.items())
    if isinstance(value, list):
        return "[" + ", ".join(shown(item) for item in value) + "]"
    return f"{value:,}" if isinstance(value, int) else str(value)


def verdict_lines(verdict: Verdict, checks: Sequence[Check]) -> list[str]:
    """The end of the page."""
    incomplete = [f"  not examined: {check.detail}" for check in verdict.unexamined]
    if verdict.suspect == "none":
        state = "incomplete" if verdict.unexamined else "healthy"
        if verdict.unfinished:
            state = f"unfinished ({verdict.unfinished}); nothing is broken so far"
        lines = [f"verdict: {state} ({len(checks)} checks)", *incomplete, f"next: {verdict.next}"]
        plan = (
            ["if a model of full size still writes garbage, the plan's next experiments are:"]
            if verdict.experiments
            else []
        )
        return [*lines, *plan, *(f"  {command}   # {question}" for command, question in verdict.experiments)]
    sure = verdict.words if verdict.words == "unfinished" else f"{verdict.words}, {verdict.sureness:.0%}"
    lines = [f"verdict: {verdict.suspect} ({sure})"]
    lines += [f"  unfinished: {verdict.unfinished}"] if verdict.unfinished else []
    lines += [f"  because: {check.name}: {check.detail}" for check in verdict.evidence]
    if verdict.explained:
        lines.append(f"  also failed: {', '.join(check.name for check in verdict.explained)}")
    return [*lines, *incomplete, f"next: {verdict.next}"]


def page(name: str, checks: Sequence[Check], verdict: Verdict, rows: Sequence[str] = ()) -> str:
    """All of it, grouped by the part that a check speaks about. rows: what the model reads, as text."""
    lines = [f"diagnosis of {name}"]
    if rows:
        lines += ["", "what the model reads (what is learned stands in «»)", *(f"  {row}" for row in rows)]
    for suspect in ORDER:
        own = [check for check in checks if check.suspect == suspect]
        same = [check for check in own if check.ok and check.name.endswith(ELSEWHERE)]
        if own:
            lines += ["", TITLES.get(suspect, suspect), *[line(check) for check in own if check not in same]]
        if same:
            lines.append(f"  ok    {len(same)} of these again, on twins of the model and all along the run")
    return "\n".join([*lines, "", *verdict_lines(verdict, checks)])
