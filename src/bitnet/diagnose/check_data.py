"""Is what the model reads the text that it should be: in order, in this tokenizer's ids, each row in its
turn? Suspect: data.

Rows are asked for as training asks for them, and nothing is assumed about the experiment but the interface of
its task. What a text is like is found by counting (ngrams.py): pairs of neighbours must be more predictable
than single tokens, and to one who has counted the training rows, the held-out rows and the task's prompts
must look alike. Not here: whether training and evaluation are kept apart (check_evaluation.py).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from bitnet.data import stream
from bitnet.data.stream import Batch
from bitnet.diagnose.finding import STRONG, Check, Part
from bitnet.diagnose.ngrams import Counts, Rows, rows_in
from bitnet.diagnose.subject import Subject
from bitnet.diagnose.watch import Narrow, Update
from bitnet.text.tokenizer import Tokenizer

READ_TOKENS, MOST_ROWS = 400_000, 4096
"""How much is read to count: enough for pairs in 2,048 ids; the pair model of 32,000 ids falls back more
often and still gains."""
ORDER_GAIN = 0.05
"""By how much of the single-token surprise pairs must lower it. Shuffled tokens gain nothing; stories here
0.2 to 0.4, sums 0.5. Ours."""
DECODED, UNKNOWN, DISTINCT = 0.95, 0.01, 0.1
DECODED_ROWS = 32
ROWS = Part("data", "the data position is a pure function of (seed, step, rank, world size)")
TARGETS = Part("data", "definition of next-token prediction")
TEXT = Part("data", "text is made to be read (ours)", weight=STRONG)
EVALUATION = Part(
    "evaluation", "held out by chance, so alike on average (ours)", weight=STRONG, explained_by={"data"}
)


def read(subject: Subject) -> Batch:
    """The first training rows, up to READ_TOKENS."""
    count = max(8, min(MOST_ROWS, READ_TOKENS // subject.settings.train.seq_len))
    return subject.task.source.rows(np.arange(count, dtype=np.int64))


def data(
    subject: Subject, batch: Batch, updates: Sequence[Update], asked: Sequence[Sequence[int]]
) -> Iterator[Check]:
    """All checks of this file. batch: of `read`; updates and asked: of the loop, with the row numbers that it
    asked for.
    """
    yield from ids_and_targets(subject, batch)
    yield rows_are_pure(subject)
    yield from read_by_the_loop(subject, asked, updates)
    yield processes_share()
    rows = rows_in([batch], subject.task.tokenizer.pad_id)
    yield from variety(subject, rows)
    yield from text(subject, rows)
    yield from looks_like_text(subject, rows)


def ids_and_targets(subject: Subject, batch: Batch) -> Iterator[Check]:
    """Ids that the model has, targets that are the next tokens, a mask that scores text and no padding."""
    tokenizer, vocabulary = subject.task.tokenizer, subject.config.vocab_size
    largest = max(int(batch.input_ids.max()), int(batch.targets.max()), tokenizer.vocab_size - 1)
    smallest = min(int(batch.input_ids.min()), int(batch.targets.min()))
    yield TARGETS(
        "ids inside the vocabulary",
        "tokenizer, rows and model disagree about the vocabulary",
        source="model.vocab_size",
    ).holds(
        smallest >= 0 and largest < vocabulary,
        [smallest, largest],
        f"0..{vocabulary - 1}, the tokenizer's included",
    )

    same, present, later = (agreement(batch, shift) for shift in (1, 0, 2))
    asked_for = "something else"
    if present > same:
        asked_for = "the present token"
    elif later > same:
        asked_for = "the token after the next"
    yield TARGETS("targets are the next tokens", f"the model is asked for {asked_for}").holds(
        same == 1.0, same, "1.0 of the positions where both are in the row"
    )

    mask, padded = batch.loss_mask, batch.targets == tokenizer.pad_id
    pads = bool(padded[:, -1].any())  # otherwise this id is no padding, but text
    scored_padding = int((mask & padded).sum()) if pads else 0
    empty = int((~mask.any(dim=1)).sum())
    yield TARGETS(
        "loss mask scores text", "nothing is learned from, or padding is", source="definition"
    ).holds(
        bool(mask.any()) and not scored_padding and empty <= len(mask) // 10,
        {
            "scored": round(float(mask.float().mean()), 4),
            "scored_padding": scored_padding,
            "rows_without": empty,
        },
        "some targets in nearly every row, and no padding",
    )


def agreement(batch: Batch, shift: int) -> float:
    """Share of positions t with targets[t] == input_ids[t + shift]."""
    width = batch.input_ids.shape[1] - shift
    if width <= 0:
        return 1.0
    return float((batch.targets[:, :width] == batch.input_ids[:, shift:]).float().mean())


def rows_are_pure(subject: Subject) -> Check:
    """A row depends on its number only, not on what was read before it."""
    one, two, turned = (
        subject.task.source.rows(np.array(numbers, dtype=np.int64)) for numbers in ([3, 11], [3, 11], [11, 3])
    )
    pure = one.equals(two) and one.equals(turned.select(torch.tensor([1, 0])))
    return ROWS(
        "rows depend on their number alone",
        "reading a row again gives another one: a resumed run learns from other data",
    ).holds(pure, pure, "the same row again, in any order")


def read_by_the_loop(
    subject: Subject, asked: Sequence[Sequence[int]], updates: Sequence[Update]
) -> Iterator[Check]:
    """Every update reads the rows of its step, and trains on them."""
    per_update = len(asked[0]) * 2 if asked else 0
    wanted = list(range(per_update * max(len(updates), 1)))
    got = [number for numbers in asked for number in numbers]
    yield ROWS(
        "each update reads its own rows",
        "rows are skipped, repeated or read out of turn",
        source="update n reads rows (n-1)R .. nR-1",
    ).holds(got == wanted, got[:16], f"{wanted[:16]}")

    seen = [update.report.batches for update in updates]
    if seen:  # an update that could not be made is another check's finding
        shown = all(_are_rows(batches, subject, number, per_update) for number, batches in enumerate(seen))
        yield ROWS(
            "the loop trains on the rows that it read",
            "the batch of an update is not that of its rows: stale, or changed on the way",
        ).holds(shown, shown, "the batches of each update equal the source's rows")


def _are_rows(batches: Sequence[Batch], subject: Subject, number: int, per_update: int) -> bool:
    """Whether these are the micro-batches of an update, as the source has them."""
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


def processes_share() -> Check:
    """Several processes read every row once between them."""
    worlds = [_covers(world, accumulation) for world, accumulation in ((1, 1), (1, 3), (2, 1), (4, 2))]
    return ROWS(
        "processes share the rows without gap or overlap",
        "with several processes rows are lost or read twice",
    ).holds(all(worlds), worlds, "every row once for 1, 2 and 4 processes")


def _covers(world: int, accumulation: int) -> bool:
    numbers = [
        stream.row_numbers(step, micro, batch_size=3, accumulation=accumulation, rank=rank, world_size=world)
        for step in (1, 2, 3)
        for micro in range(accumulation)
        for rank in range(world)
    ]
    return bool(np.array_equal(np.concatenate(numbers), np.arange(9 * accumulation * world)))


def variety(subject: Subject, rows: Rows) -> Iterator[Check]:
    """Rows differ as often as a data set of this size lets them, and so do tokens."""
    epochs = subject.task.source.epochs(len(rows))
    # the share of distinct ones among draws with replacement, which is the worst case
    possible = (1 - math.exp(-epochs)) / epochs if epochs > 1e-6 else 1.0
    distinct = len({row.tobytes() for row in rows}) / len(rows)
    least = DISTINCT * possible
    yield TEXT(
        "rows differ",
        "the same few rows come again and again",
        source="a tenth of what drawing evenly with replacement gives; some tasks draw unevenly (ours)",
    ).holds(distinct >= least, distinct, f">= {least:.3f} of {len(rows)} rows distinct")

    flat = np.concatenate(rows)
    most = float(np.bincount(flat).max() / len(flat)) if len(flat) else 1.0
    yield TEXT(
        "tokens differ", "the rows are nearly constant", source="ours; a space is 0.2 of sums and of English"
    ).holds(most < 0.7, most, "the most frequent token is below 0.7 of all")


def text(subject: Subject, rows: Rows) -> Iterator[Check]:
    """Ids and text agree in both directions, for the task's prompts and for training rows."""
    tokenizer = subject.task.tokenizer
    changed = [one for one in subject.task.prompts if tokenizer.decode(tokenizer.encode(one)) != one]
    yield TARGETS(
        "tokenizer gives text back", "comes back as another text", source="definition of a tokenizer"
    ).none(changed, "prompts changed by encoding and decoding")

    share, odd = decoded(tokenizer, rows[:DECODED_ROWS])
    yield TARGETS(
        "rows are this tokenizer's ids",
        "the rows were made by another tokenizer than the one at hand",
        source="a tokenizer encodes a text in one way; a window's ends may differ",
    ).at_least(share, DECODED, "of the ids come back from their text")
    yield TEXT("rows decode to readable text", "the decoded rows are not text").holds(
        odd <= 0.05, odd, "<= 0.05 unprintable characters, and not empty"
    )

    flat = np.concatenate(rows)
    unknown = float((flat == 3).mean()) if tokenizer.decode([3]) == "" and tokenizer.vocab_size > 4 else 0.0
    yield TEXT(
        "hardly any unknown tokens",
        "the vocabulary does not cover the text",
        source="ours; byte-level BPE has none",
    ).holds(unknown <= UNKNOWN, unknown, f"<= {UNKNOWN:g} of the ids are <unk>")


def decoded(tokenizer: Tokenizer, rows: Rows) -> tuple[float, float]:
    """Share of ids that come back from the text that they decode to, and share of that text's characters that
    cannot be printed (1.0 of an empty text).
    """
    again, pieces, odd, characters = 0, 0, 0, 0
    for row in rows:
        written = tokenizer.decode(row.tolist())
        characters += len(written)
        odd += sum(c == "\ufffd" or not (c.isprintable() or c in "\n\t\r") for c in written)

        back = tokenizer.encode(written)
        plain = [token for token in row.tolist() if tokenizer.decode([token]) != ""]
        pieces += max(len(plain), len(back))
        again += (Counter(plain) & Counter(back)).total()
    return (again / pieces if pieces else 0.0), (odd / characters if characters else 1.0)


def looks_like_text(subject: Subject, rows: Rows) -> Iterator[Check]:
    """Order in the rows, and the same kind of text in rows, held-out rows and prompts."""
    tokenizer = subject.task.tokenizer
    largest = max(int(row.max(initial=0)) for row in rows)
    most = len(rows) * 3 // 4  # count in these, and measure in the others
    counts = Counts.of(rows[:most], max(subject.config.vocab_size, largest + 1))
    alone, pairs = counts.surprise(rows[most:])
    gain = 1 - pairs / alone if alone else 0.0
    yield TEXT(
        "tokens are in order",
        "the tokens of a row stand in no order",
        source="pairs against single tokens, counted (ours); shuffled tokens gain nothing",
    ).holds(gain >= ORDER_GAIN, gain, f"neighbours predict: surprise falls by >= {ORDER_GAIN:g}")

    held_out = [row for row in rows_in(subject.task.frozen_evaluation(), tokenizer.pad_id) if len(row) > 1]
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
    said = counts.surprise([ids for ids in prompts if len(ids) > 1] or rows[most:])[1]
    yield TEXT(
        "prompts are the same kind of text",
        "the tokenizer's ids mean something else in the rows",
        source="prompts are beginnings of such text (ours)",
    ).holds(said <= alone + 0.5, said, f"<= {alone + 0.5:.2f} nats by pairs counted in training rows")
