"""The whole examination of a subject: the rows that it reads, every check, and the verdict on them.

Not here: which checks there are (run_checks.py), and what follows from them (verdict.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bitnet.diagnose.decoded import decoded_rows
from bitnet.diagnose.finding import Check
from bitnet.diagnose.run_checks import examine
from bitnet.diagnose.subject import Subject
from bitnet.diagnose.verdict import Verdict, judge
from bitnet.files import finite, write_json

ONE_THREAD = 5_000_000
"""Parameters up to which one thread examines faster than two, since nearly all checks are small
(docs/log.md)."""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What was examined, and what was found."""

    name: str
    step: int
    rows: Sequence[str]
    """A few rows as text."""
    checks: Sequence[Check]
    verdict: Verdict

    def to_json(self) -> dict[str, Any]:
        """As the command prints it with --json, and as a run keeps it."""
        facts = {"name": self.name, "step": self.step, "rows": self.rows, **self.verdict.to_json()}
        result: dict[str, Any] = finite({**facts, "checks": [check.to_json() for check in self.checks]})
        return result


def diagnose(subject: Subject, seen: Callable[[int, Check], None]) -> Diagnosis:
    """Examine a subject. A run keeps the result in eval/diagnosis.json, unless it may only be read.

    seen: called with every check as it is made, and with its number.
    """
    checks: list[Check] = []
    with threads_for(subject):
        rows = shown_rows(subject)
        for check in examine(subject):
            checks.append(check)
            seen(len(checks), check)

    verdict = judge(checks, unfinished(subject))
    found = Diagnosis(name=subject.name, step=subject.step, rows=rows, checks=checks, verdict=verdict)
    if subject.layout is not None:
        with contextlib.suppress(OSError):
            write_json(subject.layout.diagnosis, found.to_json())
    return found


@contextlib.contextmanager
def threads_for(subject: Subject) -> Iterator[None]:
    """Inside the block a small model on a CPU computes with one thread."""
    before = torch.get_num_threads()
    if subject.device.type == "cpu" and subject.config.total_params <= ONE_THREAD:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def shown_rows(subject: Subject) -> list[str]:
    """A few rows as text. Where they cannot be read, that is said, and the checks find out why."""
    try:
        return decoded_rows(subject)
    except Exception as error:  # noqa: BLE001 - whatever a broken part raises is found again by the checks
        return [f"cannot be shown: {type(error).__name__}: {error}"]


def unfinished(subject: Subject) -> str | None:
    """What a run still has to do, in words: updates of its own plan, or tokens of its variant's plan. None
    for a run that has ended.
    """
    if subject.layout is None:
        return None
    train = subject.settings.train
    if subject.step < train.total_steps:
        return f"{subject.step:,} of {train.total_steps:,} updates"
    if train.total_tokens < subject.planned_tokens / 2:
        return f"{train.total_tokens:,} of the {subject.planned_tokens:,} tokens that its variant plans"
    return None
