"""Is what the model reads the text that it should be: in order, in this tokenizer's ids, each row in its
turn? Suspect: data.

Rows are asked for as training asks for them; nothing is assumed about the experiment but its task's
interface. What a text is like is found by counting (counting.py): pairs of neighbours must be more
predictable than single tokens, and the held-out rows and the task's own prompts must look like the training
rows to one who has counted those. Not here: whether training and evaluation are kept apart
(check_evaluation.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from bitnet.data import stream
from bitnet.data.stream import Batch
from bitnet.diagnose.finding import STRONG, Check, Part
from bitnet.diagnose.ngrams import Counts, Rows, rows_of
from bitnet.diagnose.subject import Subject
from bitnet.diagnose.watch import Narrow, Update

READ_TOKENS, MOST_ROWS = 400_000, 4096
"""How much is read to count: enough for pairs in 2,048 ids; the pair model of 32,000 ids falls back more
often and still gains."""
ORDER_GAIN = 0.05
"""By how much of the single-token surprise pairs must lower it. Shuffled tokens gain nothing; stories here
0.2 to 0.4, sums 0.5. Ours."""
DECODED = 0.95
UNKNOWN, DISTINCT = 0.01, 0.1
DATA = Part("data", "model.vocab_size")
EVALUATION = Part(
    "evaluation",
    "held out by chance, so alike on average (ours)",
    weight=STRONG,
    explained_by=frozenset({"data"}),
)


def read(subject: Subject) -> Batch:
    """The first training rows, up to READ_TOKENS."""
    count = max(8, min(MOST_ROWS, READ_TOKENS // int(subject.training["seq_len"])))
    return subject.task.source.rows(np.arange(count, dtype=np.int64))


def data(
    subject: Subject, batch: Batch, updates: Sequence[Update], asked: Sequence[Sequence[int]]
) -> Iterator[Check]:
    """All checks of this file. batch: of `read`; updates and asked: of the loop, with the row numbers that it
    asked for.
    """
    yield from ids_and_targets(subject, batch)
    yield from order(subject, asked, updates)
    rows = rows_of(batch, subject.task.tokenizer.pad_id)
    yield from variety(subject, rows, len(batch.input_ids))
    yield from text(subject, rows)
    yield from looks_like_text(subject, rows)


def ids_and_targets(subject: Subject, batch: Batch) -> Iterator[Check]:
    """Ids that the model has, targets that are the next tokens, a mask that scores text and no padding."""
    tokenizer, vocabulary = subject.task.tokenizer, subject.config.vocab_size
    largest = max(int(batch.input_ids.max()), int(batch.targets.max()), tokenizer.vocab_size - 1)
    smallest = min(int(batch.input_ids.min()), int(batch.targets.min()))
    yield DATA("ids inside the vocabulary", "tokenizer, rows and model disagree about the vocabulary").holds(
        smallest >= 0 and largest < vocabulary,
        [smallest, largest],
        f"0..{vocabulary - 1}, the tokenizer's included",
    )
    same, present, later = (_agreement(batch, shift) for shift in (1, 0, 2))
    hint = (
        "the present token"
        if present > same
        else "the token after the next"
        if later > same
        else "something else"
    )
    yield DATA(
        "targets are the next tokens",
        f"the model is asked for {hint}",
        source="definition of next-token prediction",
    ).holds(same == 1.0, same, "1.0 of the positions where both are in the row")
    mask = batch.loss_mask
    scored_padding = (
        int((mask & (batch.targets == tokenizer.pad_id)).sum()) if _pads(batch, tokenizer.pad_id) else 0
    )
    empty = int((~mask.any(dim=1)).sum())
    yield DATA("loss mask scores text", "nothing is learned from, or padding is", source="definition").holds(
        bool(mask.any()) and not scored_padding and empty <= len(mask) // 10,
        {
            "scored": round(float(mask.float().mean()), 4),
            "scored_padding": scored_padding,
            "rows_without": empty,
        },
        "some targets in nearly every row, and no padding",
    )


def _agreement(batch: Batch, shift: int) -> float:
    """Share of positions t with targets[t] == input_ids[t + shift]."""
    width = batch.input_ids.shape[1] - shift
    return (
        float((batch.targets[:, :width] == batch.input_ids[:, shift:]).float().mean()) if width > 0 else 1.0
    )


def _pads(batch: Batch, pad_id: int) -> bool:
    """Whether padding occurs as padding: at the ends of rows, unscored."""
    return bool((batch.targets[:, -1] == pad_id).any())


def order(subject: Subject, asked: Sequence[Sequence[int]], updates: Sequence[Update]) -> Iterator[Check]:
    """Rows are a pure function of their number, every update has its own, and the loop reads those of its
    step.
    """
    source = subject.task.source
    one, two, turned = (
        source.rows(np.array(numbers, dtype=np.int64)) for numbers in ([3, 11], [3, 11], [11, 3])
    )
    pure = one.equals(two) and one.equals(turned.select(torch.tensor([1, 0])))
    yield DATA(
        "rows depend on their number alone",
        "reading a row again gives another one: a resumed run learns from other data",
        source="the data position is a pure function of (seed, step)",
    ).holds(pure, pure, "the same row again, in any order")
    per_update = len(asked[0]) * 2 if asked else 0
    wanted = list(range(per_update * max(len(updates), 1)))
    got = [number for numbers in asked for number in numbers]
    yield DATA(
        "each update reads its own rows",
        "rows are skipped, repeated or read out of turn",
        source="update n reads rows (n-1)R .. nR-1",
    ).holds(got == wanted, got[:16], f"{wanted[:16]}")
    seen = [update.report.batches for update in updates]
    if seen:  # an update that could not be made is another check's finding
        shown = all(_are_rows(batches, subject, number, per_update) for number, batches in enumerate(seen))
        yield DATA(
            "the loop trains on the rows that it read",
            "the batch of an update is not that of its rows: stale, or changed on the way",
            source="the same",
        ).holds(shown, shown, "the batches of each update equal the source's rows")
    worlds = [_covers(world, accumulation) for world, accumulation in ((1, 1), (1, 3), (2, 1), (4, 2))]
    yield DATA(
        "processes share the rows without gap or overlap",
        "with several processes rows are lost or read twice",
        source="the data position is a pure function of (seed, step, rank, world size)",
    ).holds(all(worlds), worlds, "every row once for 1, 2 and 4 processes")


def _are_rows(batches: Sequence[Batch], subject: Subject, number: int, per_update: int) -> bool:
    if not per_update:
        return False
    width = batches[0].input_ids.shape[1]
    size = per_update // max(len(batches), 1)
    for micro, batch in enumerate(batches):
        first = number * per_update + micro * size
        right = Narrow(subject.task.source, width).rows(np.arange(first, first + size, dtype=np.int64))
        if not batch.to(torch.device("cpu")).equals(right):
            return False
    return True


def _covers(world: int, accumulation: int) -> bool:
    numbers = [
        stream.row_numbers(step, micro, batch_size=3, accumulation=accumulation, rank=rank, world_size=world)
        for step in (1, 2, 3)
        for micro in range(accumulation)
        for rank in range(world)
    ]
    return bool(np.array_equal(np.concatenate(numbers), np.arange(9 * accumulation * world)))


def variety(subject: Subject, rows: Rows, count: int) -> Iterator[Check]:
    """Rows differ as often as a data set of this size lets them."""
    epochs = subject.task.source.epochs(count)
    possible = (
        (1 - math.exp(-epochs)) / epochs if epochs > 1e-6 else 1.0
    )  # distinct among draws with replacement, the worst case
    distinct = len({row.tobytes() for row in rows}) / max(count, 1)
    least = DISTINCT * possible
    yield DATA(
        "rows differ",
        "the same few rows come again and again",
        source="a tenth of what drawing evenly with replacement gives; some tasks draw unevenly (ours)",
        weight=STRONG,
    ).holds(distinct >= least, distinct, f">= {least:.3f} of {count} rows distinct")
    flat = np.concatenate(rows) if rows else np.empty(0, dtype=np.int64)
    most = float(np.bincount(flat).max() / len(flat)) if len(flat) else 1.0
    yield DATA(
        "tokens differ",
        "the rows are nearly constant",
        source="ours; a space is 0.2 of sums and of English",
        weight=STRONG,
    ).holds(most < 0.7, most, "the most frequent token is below 0.7 of all")


def text(subject: Subject, rows: Rows) -> Iterator[Check]:
    """Ids and text agree in both directions, for the task's prompts and for training rows."""
    tokenizer = subject.task.tokenizer
    broken = [
        prompt for prompt in subject.task.prompts if tokenizer.decode(tokenizer.encode(prompt)) != prompt
    ]
    yield DATA(
        "tokenizer gives text back", "comes back as another text", source="definition of a tokenizer"
    ).none(broken, "prompts changed by encoding and decoding")
    again, pieces = 0, 0
    strange, characters = 0, 0
    for row in rows[:32]:
        written = tokenizer.decode(row.tolist())
        characters += len(written)
        strange += sum(c == "�" or not (c.isprintable() or c in "\n\t\r") for c in written)
        back = tokenizer.encode(written)
        special = [token for token in row.tolist() if tokenizer.decode([token]) == ""]
        pieces += max(len(row) - len(special), len(back))
        again += _common(
            np.array([t for t in row.tolist() if t not in set(special)]), np.array(back, dtype=np.int64)
        )
    share = again / pieces if pieces else 0.0
    yield DATA(
        "rows are this tokenizer's ids",
        "the rows were made by another tokenizer than the one at hand",
        source="a tokenizer encodes a text in one way; a window's ends may differ",
    ).at_least(share, DECODED, "of the ids come back from their text")
    odd = strange / characters if characters else 1.0
    yield DATA(
        "rows decode to readable text",
        "the decoded rows are not text",
        source="text is made to be read (ours)",
        weight=STRONG,
    ).holds(characters > 0 and odd <= 0.05, odd, "<= 0.05 unprintable characters, and not empty")
    flat = np.concatenate(rows)
    unknown = float((flat == 3).mean()) if tokenizer.decode([3]) == "" and tokenizer.vocab_size > 4 else 0.0
    yield DATA(
        "hardly any unknown tokens",
        "the vocabulary does not cover the text",
        source="ours; byte-level BPE has none",
        weight=STRONG,
    ).holds(unknown <= UNKNOWN, unknown, f"<= {UNKNOWN:g} of the ids are <unk>")


def _common(first: np.ndarray, second: np.ndarray) -> int:
    """How many ids two sequences have in common, counted with repetition."""
    size = int(max(first.max(initial=0), second.max(initial=0))) + 1
    return int(
        np.minimum(
            np.bincount(first.astype(np.int64), minlength=size), np.bincount(second, minlength=size)
        ).sum()
    )


def looks_like_text(subject: Subject, rows: Rows) -> Iterator[Check]:
    """Order in the rows, and the same kind of text in rows, held-out rows and prompts."""
    tokenizer, vocabulary = (
        subject.task.tokenizer,
        int(max(subject.config.vocab_size, 1 + max(int(row.max(initial=0)) for row in rows))),
    )
    half = len(rows) * 3 // 4
    counts = Counts.of(rows[:half], vocabulary)
    alone, pairs = counts.surprise(rows[half:])
    gain = 1 - pairs / alone if alone else 0.0
    yield DATA(
        "tokens are in order",
        "the tokens of a row stand in no order",
        source="pairs against single tokens, counted (ours); shuffled tokens gain nothing",
        weight=STRONG,
    ).holds(gain >= ORDER_GAIN, gain, f"neighbours predict: surprise falls by >= {ORDER_GAIN:g}")
    held_out = [
        row
        for batch in subject.task.frozen_evaluation()
        for row in rows_of(batch, tokenizer.pad_id)
        if len(row) > 1
    ]
    other = counts.surprise(held_out)[1] if held_out else math.nan
    limit = pairs + 0.5 * max(alone - pairs, 0.2) + 0.1
    yield EVALUATION(
        "held-out rows are the same kind of text",
        "evaluation has other text, other ids or another order than training",
    ).holds(
        bool(held_out) and other <= limit,
        other,
        f"<= {limit:.3f} nats by pairs counted in training rows ({pairs:.3f} there)",
    )
    if subject.task.end_mark is None:
        return  # prompts of running text need not be like the user's own documents
    prompts = [np.array(tokenizer.encode(prompt), dtype=np.int64) for prompt in subject.task.prompts]
    said = counts.surprise([ids for ids in prompts if len(ids) > 1] or rows[half:])[1]
    most = alone + 0.5
    yield DATA(
        "prompts are the same kind of text",
        "the tokenizer's ids mean something else in the rows",
        source="prompts are beginnings of such text (ours)",
        weight=STRONG,
    ).holds(said <= most, said, f"<= {most:.2f} nats by pairs counted in training rows")
