"""The whole plan of rows, without a model."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from bitnet.cli.diagnose import of_experiment
from bitnet.data.stream import Batch
from bitnet.diagnose import check_plan
from bitnet.diagnose.subject import Subject
from bitnet.train import loop
from conftest import TINY_MODEL


@pytest.fixture(scope="module")
def subject() -> Subject:
    words = [
        "--variant",
        "quick",
        "--device",
        "cpu",
        *TINY_MODEL,
        "--data.max-operand",
        "9",
        "--num-steps",
        "200",
        "--batch-size",
        "4",
    ]
    return of_experiment("arithmetic", words, full=False)


def test_long_plans_are_walked_evenly_with_their_edges() -> None:
    assert check_plan.walked(5, 2) == [1, 2, 3, 4, 5]
    steps = check_plan.walked(400_000, 200_000)
    assert {1, 199_999, 200_000, 200_001, 400_000} <= set(steps)
    assert len(steps) <= check_plan.WALKED + 8


def test_an_update_late_in_the_plan_that_reads_other_rows_is_seen(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert check_plan.numbers_of_every_update(subject).ok
    real = loop.read_batches

    def again(source: Any, config: Any, step: int, *rest: Any) -> Any:
        return real(source, config, step if step < 190 else 1, *rest)

    monkeypatch.setattr(loop, "read_batches", again)
    found = check_plan.numbers_of_every_update(subject)
    assert not found.ok
    assert found.value == 11
    assert "update [190]" in found.detail


def test_rows_that_come_again_are_seen(subject: Subject) -> None:
    assert check_plan.order_never_repeats(subject).ok

    class Short:
        """The first hundred rows, for ever."""

        def rows(self, numbers: Any) -> Batch:
            return subject.task.source.rows(np.asarray(numbers) % 100)

        def epochs(self, rows: int) -> float:
            return subject.task.source.epochs(rows)

    class Task:
        source = Short()

    task: Any = Task()
    found = check_plan.order_never_repeats(dataclasses.replace(subject, task=task))
    assert not found.ok
    assert 100 in found.value


def test_the_loop_is_followed_in_a_row(subject: Subject) -> None:
    made, problems = check_plan._made_in_a_row(check_plan.small_subject(subject), 20)
    assert (made, problems) == (20, [])
