"""The examination: every check in the order of the tree, from what is stored to what is learned, and the page
about it.

    data -> numbers of the forward pass -> gradients -> optimizer -> evaluation -> decoding -> checkpoint ->
    learning, size

Each group is guarded: if a part is so broken that looking at it raises, that is a finding, and the next group
is looked at.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from bitnet.data.stream import Batch
from bitnet.diagnose import (
    check_data,
    check_decoding,
    check_evaluation,
    check_formats,
    check_gradients,
    check_judge,
    check_learning,
    check_marks,
    check_numerics,
    check_optimizer,
    check_plan,
    check_rehearsal,
    check_run,
    check_settings,
    check_start,
    check_trained,
    check_twin,
)
from bitnet.diagnose.finding import Check, Suspect, collect
from bitnet.diagnose.rehearsal import rehearse
from bitnet.diagnose.subject import Subject
from bitnet.diagnose.watch import Narrow, Update


def examine(subject: Subject) -> Iterator[Check]:
    """All checks, as they are made."""
    made: list[Batch] = []
    updates: list[Update] = []
    asked: list[list[int]] = []

    def reading() -> Iterable[Check]:
        made.append(check_data.read(subject))
        return ()

    def updating() -> Iterable[Check]:
        source = Narrow(subject.task.source, check_gradients.COLUMNS)
        updates.extend(check_gradients.first_updates(subject, source))
        asked.extend(source.asked)
        return ()

    yield from collect("the training rows", "data", reading)
    yield from collect("an update", "gradients", updating)
    groups: list[tuple[str, Suspect, Callable[[], Iterable[Check]]]] = [
        ("the settings", "optimizer", lambda: check_settings.settings(subject)),
        ("the data", "data", lambda: check_data.data(subject, made[0], updates, asked)),
        ("the marks in rows", "data", lambda: check_marks.marks(subject, made[0])),
        ("the plan of rows", "data", lambda: check_plan.plan(subject)),
        ("the beginning", "quantization", lambda: check_start.beginning(subject)),
        ("the forward pass", "quantization", lambda: check_numerics.numerics(subject)),
        ("number formats", "quantization", lambda: check_formats.formats(subject)),
        ("the twins", "gradients", lambda: check_twin.twins(subject)),
        ("the backward pass", "gradients", lambda: check_gradients.gradients(subject, updates)),
        ("the optimizer", "optimizer", lambda: check_optimizer.optimizer(subject, updates)),
        ("the evaluation", "evaluation", lambda: check_evaluation.evaluation(subject, made[0])),
        ("the judge", "evaluation", lambda: check_judge.judging(subject)),
        ("decoding", "decoding", lambda: check_decoding.decoding(subject)),
        ("the rehearsal", "checkpoint", lambda: _rehearse(subject)),
        ("learning", "training", lambda: check_learning.learning(subject)),
        ("the training so far", "training", lambda: check_trained.trained(subject, made[0])),
    ]
    if subject.layout is not None:
        groups.insert(0, ("the run", "checkpoint", lambda: check_run.recorded(subject)))
    for name, suspect, checks in groups:
        if made or name not in ("the data", "the marks in rows", "the evaluation", "the training so far"):
            yield from collect(name, suspect, checks)


def _rehearse(subject: Subject) -> Iterator[Check]:
    """Two short runs in a temporary folder, and the checks on them."""
    if threading.current_thread() is not threading.main_thread():
        return  # a run answers signals, which only the main thread may
    with tempfile.TemporaryDirectory(prefix="bitnet-rehearsal-") as folder:
        yield from check_rehearsal.rehearsed(rehearse(subject, Path(folder)))
