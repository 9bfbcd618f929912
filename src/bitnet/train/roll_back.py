"""After values that are not finite: return to an earlier checkpoint, and go on with other data.

An update whose loss or gradient is NaN or infinite is never applied. One alone is skipped. After three in
a row, or as soon as a weight itself is not finite, the run returns to the newest good checkpoint before them
and skips everything that was read since, as PaLM did with its loss spikes (arXiv:2204.02311, section 5.1):
the same weights on the same data would come to the same point again. Steps, rates and schedules stay
functions of the step; only the data moves on. When the same comes again soon, the run fails.

What was skipped is a line of metrics/roll_backs.jsonl, on disk before training goes on. A resume reads it, so
that the rows of an update stay a function of the seed, the step and this file. The line is never cut back:
whichever checkpoint a run resumes from, the updates from `step` on leave those rows out.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from typing import Any

from bitnet.data.stream import Skip, data_step
from bitnet.errors import CheckpointError, RunError, TrainingFailed
from bitnet.files import write_json
from bitnet.run.checkpoint import Checkpoint, load_checkpoint
from bitnet.run.layout import RunLayout
from bitnet.run.metrics import LineWriter, cut_back, read_lines
from bitnet.train.device import wants_compile
from bitnet.train.observe.anomalies import Anomaly
from bitnet.train.observe.dump import write_dump
from bitnet.train.observe.guard import ROLL_BACK, Diverged
from bitnet.train.resume import restore
from bitnet.train.session import Session

AGAIN = 1000
"""Updates within which a second divergence counts as the same. A guess: PaLM skipped 200 to 500 batches."""


def read_skips(layout: RunLayout, checkpoint: Checkpoint) -> list[Skip]:
    """What earlier roll-backs left out. Raises RunError where that contradicts the checkpoint."""
    # Only drops a half-written last line: its process was killed before it acted on it.
    cut_back(layout.roll_backs, sys.maxsize)
    lines = read_lines(layout.roll_backs)
    found = [Skip(row["step"], row.get("skipped_updates", 0)) for row in lines.rows]
    known = [Skip(*pair) for pair in checkpoint.state.get("skipped_data", [])]
    whole = not lines.skipped and all(isinstance(skip.updates, int) and skip.updates > 0 for skip in found)

    # With other skips the updates after the checkpoint would read other rows than they did.
    if not whole or found[: len(known)] != known:
        raise RunError(
            f"{layout.roll_backs} was altered or lost: the checkpoint of update {checkpoint.step} has "
            f"skipped data {len(known)} times and the file tells of {len(found)}; restore the file, or begin "
            "under another --run-id"
        )
    return found


def roll_back(session: Session, trouble: Diverged, skips: Sequence[Skip]) -> Checkpoint:
    """Restore the newest good checkpoint before the trouble, and record that what was read since is skipped.

    Raises TrainingFailed where the run has rolled back before, at most AGAIN updates earlier, or has no
    checkpoint to return to.
    """
    layout = session.layout
    before = read_lines(layout.roll_backs).rows
    if before and trouble.last <= before[-1]["failed_step"] + AGAIN:
        raise TrainingFailed(
            f"{_what(session, trouble, skips)}, again: {_story(before[-1])}. {_advice(session, trouble)}"
        )

    checkpoint = _target(session, trouble)
    if checkpoint is None:
        raise TrainingFailed(
            f"{_what(session, trouble, skips)}, and there is no good checkpoint to return to. "
            f"{_advice(session, trouble)}"
        )

    # The updates after it are done again with other data, so their checkpoints are of another run.
    for step in layout.checkpoint_steps():
        if step > checkpoint.step:
            shutil.rmtree(layout.checkpoint(step))

    row = _record(session, trouble, checkpoint.step, skips)
    finding = f"{_what(session, trouble, skips)}; {_story(row)}"
    _leave_folder(session, trouble, row, finding)
    with LineWriter(layout.roll_backs) as writer:
        writer.write(row)
        writer.sync()
    session.say(finding)

    restore(session, checkpoint)
    return checkpoint


def _target(session: Session, trouble: Diverged) -> Checkpoint | None:
    """The newest good checkpoint before the trouble.

    One that only an interruption made does not count, so that interrupted and unbroken runs go back equally
    far.
    """
    layout, config = session.layout, session.config.train
    for step in reversed(layout.checkpoint_steps()):
        if step < trouble.first and config.has_checkpoint(step):
            try:
                return load_checkpoint(layout.checkpoint(step))
            except CheckpointError as error:
                session.say(f"skipping a damaged checkpoint: {error}")
    return None


def _record(session: Session, trouble: Diverged, target: int, skips: Sequence[Skip]) -> dict[str, Any]:
    """The line of metrics/roll_backs.jsonl."""
    first, last = data_step(target + 1, skips), data_step(trouble.last, skips)
    return {
        "step": target + 1,
        "event": ROLL_BACK,
        "reason": trouble.reason,
        "refused_steps": list(trouble.refused),
        "failed_step": trouble.last,
        "checkpoint_step": target,
        "skipped_updates": last + 1 - first,
        "skipped_rows": _rows(session, first, last),
        "time_unix": time.time(),
    }


def _rows(session: Session, first: int, last: int) -> list[int]:
    """First and last number of the rows that the data steps first..last read."""
    per_update = session.config.train.batch_size * session.config.train.grad_accumulation_steps
    return [(first - 1) * per_update, last * per_update - 1]


def _leave_folder(session: Session, trouble: Diverged, row: dict[str, Any], finding: str) -> None:
    """anomalies/step_NNNNNN_roll_back/: the broken model as it was, and what was skipped."""
    folder, task = session.layout.anomaly(trouble.last, ROLL_BACK), session.task
    look_first = "the folders of the refused updates beside this one, and batch.json: is its text unusual?"
    anomaly = Anomaly(ROLL_BACK, finding, look_first)
    write_dump(folder, anomaly, trouble.last, session.model, trouble.batch, task.tokenizer, task.prompts)
    write_json(folder / "roll_back.json", row)


def _what(session: Session, trouble: Diverged, skips: Sequence[Skip]) -> str:
    """What was not finite, in which updates, and which rows they had read."""
    rows = _rows(session, data_step(trouble.first, skips), data_step(trouble.last, skips))
    count = trouble.last - trouble.first + 1
    updates = (
        f"at update {trouble.last}"
        if count == 1
        else f"in {count} updates in a row, {trouble.first} to {trouble.last}"
    )
    return f"{trouble.reason} {updates}, which read the rows {rows[0]:,} to {rows[1]:,} of the training data"


def _story(row: dict[str, Any]) -> str:
    """What a roll-back did, from its line."""
    first, last = row["skipped_rows"]
    return (
        f"after update {row['failed_step']} the run went back to the checkpoint of update "
        f"{row['checkpoint_step']} and skipped the rows {first:,} to {last:,}"
    )


def _advice(session: Session, trouble: Diverged) -> str:
    """The possible causes in this run, each with the setting that removes it."""
    train, machine = session.config.train, session.machine
    causes = ["data that the model cannot read (see batch.json of the folders in anomalies/)"]
    if trouble.first > 1:  # the first update is refused before any rate has acted
        rates = "--train.peak-lr or --train.muon-lr" if train.optimizer == "muon" else "--train.peak-lr"
        causes.append(f"a rate too high (lower {rates})")
    elif train.start_from is not None:
        causes.append(f"the weights that it began with ({train.start_from})")
    if machine.bf16 or machine.fp16:
        causes.append("the number format (--train.precision fp32)")
    if wants_compile(train, machine.device):
        causes.append("the compiler (--train.compile off)")
    return (
        "No weight was changed by a refused update; the run can go on from its last checkpoint. Possible "
        "causes: " + ", ".join(causes) + f"; bitnet diagnose {session.layout.root} looks for faults"
    )
