"""The examination: every check in the order of the tree, from what is stored to what is learned, and the page
about it.

    data -> numbers of the forward pass -> gradients -> optimizer -> evaluation -> decoding -> engine ->
    checkpoint -> learning, size

Each group is guarded: if a part is so broken that looking at it raises, that is a finding, and the next group
is looked at.
"""

from __future__ import annotations

import sysconfig
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from bitnet.data.stream import Batch
from bitnet.diagnose import (
    check_data,
    check_decoding,
    check_engine,
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
from bitnet.diagnose.finding import STRONG, SUSPECTS, Check, Part, Suspect
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
        ("the packed engine", "engine", lambda: check_engine.engine(subject)),
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


def collect(group: str, suspect: Suspect, checks: Callable[[], Iterable[Check]]) -> Iterator[Check]:
    """The checks of a group as they come. A part so broken that it raises is a finding, not a crash of the
    examination.
    """
    last = ""
    try:
        for check in checks():
            last = f" (after: {check.name})"
            yield check
    except Exception as error:  # noqa: BLE001 - whatever a broken part raises is the finding, and is shown
        yield unexaminable(group, suspect, error, last)


def unexaminable(group: str, suspect: Suspect, error: Exception, after: str) -> Check:
    """The finding that a group of checks raised an error. An error of the examination's own code says nothing
    about the part: the group is then reported as not examined.
    """
    place, message = raised_in(error), f"{type(error).__name__}: {error}".strip()[:300]
    if place.startswith(OWN):
        detail = f"bitnet diagnose itself failed in {place}{after}, and the part is not examined: {message}"
        explained: set[Suspect] = set()
    else:
        detail = f"the examined code raised an error in {place}{after}: {message}"
        explained = set(SUSPECTS[: SUSPECTS.index("evaluation")]) - {suspect}
    part = Part(suspect, "the examination itself", STRONG, explained)
    failed = part(f"{group} can be examined", detail).holds(False, message, "no error")
    return replace(failed, examined=not place.startswith(OWN))


PATHS = ("stdlib", "platstdlib", "purelib", "platlib")
LIBRARIES = tuple(str(Path(sysconfig.get_path(name))) for name in PATHS)
OWN = str(Path(__file__).parent)


def raised_in(error: BaseException) -> str:
    """File and line of the innermost frame that is no library's: whose code it was."""
    frames = traceback.extract_tb(error.__traceback__)
    package = str(Path(__file__).parents[1])  # may itself be installed among the libraries
    ours = [
        frame
        for frame in frames
        if frame.filename.startswith(package) or not frame.filename.startswith((*LIBRARIES, "<"))
    ]
    last = (ours or frames)[-1]
    return f"{last.filename}:{last.lineno}"
