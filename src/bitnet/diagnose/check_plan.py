"""Is every row of the whole plan the right one, not only those of the first updates? Suspects: data, and what
the loop does late in a run.

The row numbers of every update are read without a model. The loop itself is visited at many places of the
run, with a small model and the run's own settings. The order of rows must not come again. Where the source
says that it shows everything once an epoch, an epoch is read and counted. Not here: what is in a row
(check_data.py, check_marks.py).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bitnet.data.stream import Batch
from bitnet.diagnose import check_twin
from bitnet.diagnose.decoded import rows_per_update
from bitnet.diagnose.finding import STRONG, Check, Part
from bitnet.diagnose.ngrams import rows_in
from bitnet.diagnose.subject import Subject
from bitnet.diagnose.twin import Kind, LivelyRows, twin_of

DATA = Part("data", "update n reads rows (n-1)R .. nR-1")
WALKED = 8_000  # updates whose row numbers are all read; of longer runs as many, spread evenly
IN_A_ROW = 128  # updates that the loop makes one after another
EPOCH_TOKENS = 2_000_000  # an epoch of at most so many tokens is read twice
DISTINCT = 0.75  # ours; whole windows are equal only where documents are copies in the same place
SEQUENCE = 8  # rows whose order is recognised
OWN_SHAPE = {
    "num_heads": 2,
    "num_kv_heads": 1,
    "hidden_size": 16,
    "num_layers": 1,
    "ffn_hidden_size": 24,
    "norm_eps": 1e-5,
}


def plan(subject: Subject) -> Iterator[Check]:
    """All checks of this file."""
    yield numbers_of_every_update(subject)
    small = small_subject(subject)
    yield in_a_row(small)
    yield from late_updates(small)
    yield order_never_repeats(subject)
    yield from epochs(subject)


class Counted:
    """Rows without content; records which numbers are asked for."""

    def __init__(self) -> None:
        self.asked: list[NDArray[np.int64]] = []

    def rows(self, numbers: NDArray[np.int64]) -> Batch:
        """Nothing, in as many rows."""
        self.asked.append(numbers)
        nothing = torch.zeros(len(numbers), 1, dtype=torch.int64)
        return Batch(nothing, nothing, nothing.bool())

    def epochs(self, rows: int) -> float:
        """None."""
        return 0.0

    def fingerprint(self) -> dict[str, Any]:
        """Nothing."""
        return {}


def walked(total: int, boundary: int) -> list[int]:
    """Updates whose rows are checked: all, or the ends, the stage boundary and evenly between."""
    if total <= WALKED:
        return list(range(1, total + 1))
    edges = {1, 2, 3, boundary - 1, boundary, boundary + 1, total - 1, total}
    return sorted(edges | {int(step) for step in np.linspace(1, total, WALKED)})


def numbers_of_every_update(subject: Subject) -> Check:
    """The row numbers that each update of the plan asks for."""
    train, per_update = subject.settings.train, rows_per_update(subject)
    wrong: list[int] = []
    steps = walked(train.total_steps, train.boundary)
    for step in steps:
        source = Counted()
        subject.read_update(source, step)
        got = np.concatenate(source.asked) if source.asked else np.empty(0)
        if not np.array_equal(got, np.arange((step - 1) * per_update, step * per_update)):
            wrong.append(step)
    return DATA(
        "every update of the plan reads its own rows", f"other rows are read from update {wrong[:1]} on"
    ).holds(not wrong, len(wrong), f"0 of {len(steps):,} updates with other rows")


def small_subject(subject: Subject) -> Subject:
    """A small model under the run's own settings."""
    train = subject.settings.train
    settings = {
        "batch_size": 2,
        "grad_accumulation_steps": 2,
        "total_steps": train.total_steps,
        "warmup_steps": train.warmup_steps,
        "stage1_end": train.boundary,
        "objective": train.objective,
    }
    return twin_of(subject, Kind("own settings", OWN_SHAPE, settings, pairs=train.objective == "preference"))


class _Recorded(LivelyRows):
    """Rows with a record of which were asked for."""

    def __init__(self, kind: Kind) -> None:
        super().__init__(kind)
        self.asked: list[int] = []

    def rows(self, numbers: NDArray[np.int64]) -> Batch:
        self.asked += numbers.tolist()
        return super().rows(numbers)


def in_a_row(small: Subject) -> Check:
    """The loop counts its steps, rows and tokens from the beginning."""
    made, problems = _made_in_a_row(small, min(IN_A_ROW, small.settings.train.total_steps))
    return DATA(
        "the loop counts its steps, rows and tokens",
        "step, tokens_seen or the rows of an update are not its own",
    ).holds(not problems, problems[:3], f"{made} updates, each its own")


def _made_in_a_row(small: Subject, count: int) -> tuple[int, list[str]]:
    """How many updates were made, and what of them was wrong."""
    source = _Recorded(small.task.source.kind)  # type: ignore[attr-defined]
    model = small.new_model(small.config)
    per_update = rows_per_update(small)
    problems: list[str] = []
    made = 0

    for report in small.train(model, small.new_optimizers(model), source):
        made += 1
        rows = list(range((made - 1) * per_update, made * per_update))
        if report.step != made or source.asked != rows:
            problems.append(f"update {made} is called {report.step} and reads {source.asked[:4]}")
        if report.tokens_seen != made * small.settings.train.tokens_per_step:
            problems.append(f"update {made}: tokens_seen {report.tokens_seen}")
        source.asked = []
        if made == count:
            break

    if made != count:
        problems.append(f"{made} updates instead of {count}")
    return made, problems


def late_updates(small: Subject) -> Iterator[Check]:
    """Pairs of updates at places all along the run, compared with independent ones. Of each check the first
    that failed, or one that did not.
    """
    train = small.settings.train
    total, boundary, warmup = train.total_steps, train.boundary, train.warmup_steps
    shares = {total // 3, 2 * total // 3, 9 * total // 10, total - 2}
    places = {warmup - 1, warmup, boundary // 2, boundary - 1, 99, 999} | shares
    found: dict[str, list[Check]] = {}
    for start in sorted(place for place in places if 1 < place <= total - 2):
        for check in check_twin.judged(small, check_twin.watched(small, start, 2), "late updates"):
            found.setdefault(check.name.removesuffix(": late updates"), []).append(check)
    for name, checks in found.items():
        shown = next((check for check in checks if not check.ok), checks[0])
        yield dataclasses.replace(shown, name=f"{name}, late updates")


def order_never_repeats(subject: Subject) -> Check:
    """The first rows, in their order, do not come again after any usual period."""
    per_update = rows_per_update(subject)
    last = per_update * subject.settings.train.total_steps
    periods = {
        *(per_update * updates for updates in (1, 2, 100, 1000)),
        *(2**power for power in range(3, 31)),
        *(100, 1000, 10_000),
        _rows_of_an_epoch(subject),
        last // 2,
    }

    def rows_from(number: int) -> list[bytes]:
        numbers = np.arange(number, number + SEQUENCE, dtype=np.int64)
        return digests(subject.task.source.rows(numbers))

    first = rows_from(0)
    again = [
        period
        for period in sorted(periods)
        if SEQUENCE <= period < max(last, 2) and rows_from(period) == first
    ]
    few = len(set(first)) < SEQUENCE // 2  # a handful of different rows comes again in any order
    return DATA(
        "the order of rows does not come again",
        "the rows of the beginning are read again, in the same order",
        source="rows are drawn anew, epochs ordered anew",
    ).holds(few or not again, again[:3], "no period after which the first rows return")


def digests(batch: Batch) -> list[bytes]:
    """A short hash of each row, its mask included."""
    joined = torch.cat([batch.input_ids, batch.targets, batch.loss_mask.long()], dim=1).numpy()
    return [hashlib.blake2b(row.tobytes(), digest_size=12).digest() for row in joined]


def _rows_of_an_epoch(subject: Subject) -> int:
    share = subject.task.source.epochs(1_000_000)
    return max(round(1_000_000 / share), 1) if share > 1e-9 else 2**40


def epochs(subject: Subject) -> Iterator[Check]:
    """Where each piece of data is said to be shown once an epoch: two epochs hold the same rows, and all of
    the data.
    """
    facts = subject.task.source.fingerprint()
    count, width = _rows_of_an_epoch(subject), subject.settings.train.seq_len
    once = "once" in str(facts.get("sampling_strategy", ""))
    if not once or facts.get("other_share") or count * width > EPOCH_TOKENS:
        return
    (first, tokens), (second, _) = (_epoch(subject, number * count, count) for number in range(2))
    yield DATA(
        "an epoch shows each row once",
        "rows are lost or shown twice within an epoch",
        source=str(facts["sampling_strategy"]),
    ).holds(first == second, (first - second).total(), "0 rows of an epoch that the next one lacks")
    yield DATA(
        "rows of an epoch differ",
        "pieces of the data are shown twice in an epoch, others never",
        weight=STRONG,
    ).at_least(len(first) / count, DISTINCT, f"of the {count:,} rows of an epoch")

    size, slack = int(facts.get("dataset_size_tokens", 0)), 0
    if facts.get("windows_per_epoch") is not None:  # windows of one stream, whose end fills no window
        tokens, slack = count * width, width + 1
    yield DATA(
        "an epoch covers the data",
        "part of the data is never read, or read more than once",
        source="dataset_size_tokens of the fingerprint",
    ).holds(0 <= size - tokens <= slack, size - tokens, f"0..{slack} of {size:,} tokens left out")


def _epoch(subject: Subject, first: int, count: int) -> tuple[Counter[bytes], int]:
    """The rows of an epoch, and how many tokens they have without padding."""
    rows: Counter[bytes] = Counter()
    tokens = 0
    for begin in range(first, first + count, 2048):
        numbers = np.arange(begin, min(begin + 2048, first + count), dtype=np.int64)
        batch = subject.task.source.rows(numbers)
        rows.update(digests(batch))
        tokens += sum(len(row) for row in rows_in([batch], subject.task.tokenizer.pad_id))
    return rows, tokens
