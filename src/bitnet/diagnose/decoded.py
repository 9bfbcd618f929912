r"""Rows as text, as a person would look at them first: what the model is given, and what of it is learned.

    training row 0      25 + 17 = «42\n»
    held-out row 0      3 + 88 = «91\n»

Scored targets stand in «»; control characters are shown, not executed. Not here: checks on rows
(check_data.py).
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from bitnet.data.stream import Batch

if TYPE_CHECKING:
    from bitnet.diagnose.subject import Subject
    from bitnet.text.tokenizer import Tokenizer

LETTERS = 160  # of a row that are shown


def decoded_rows(subject: Subject) -> list[str]:
    """The first training rows, the last one that the run will read, and a held-out row, each in one line."""
    last = max(int(subject.training["total_steps"]) * rows_per_update(subject) - 1, 2)
    numbers = [0, 1, last]
    training = subject.task.source.rows(np.array(numbers, dtype=np.int64))
    held_out = subject.task.frozen_evaluation()[0]
    tokenizer = subject.task.tokenizer
    shown = [
        f"{f'training row {number:,}':<22}{marked(training, place, tokenizer)}"
        for place, number in enumerate(numbers)
    ]
    return [*shown, f"{'held-out row 0':<22}{marked(held_out, 0, tokenizer)}"]


def rows_per_update(subject: Subject) -> int:
    """R, as one process reads them."""
    return int(subject.training["batch_size"]) * int(subject.training["grad_accumulation_steps"])


def marked(batch: Batch, row: int, tokenizer: Tokenizer) -> str:
    """One row as text with its scored targets in «», without the padding at its end."""
    ids = [int(batch.input_ids[row, 0]), *batch.targets[row].tolist()]
    scored = [False, *batch.loss_mask[row].tolist()]
    while len(ids) > 1 and ids[-1] == tokenizer.pad_id and not scored[-1]:
        ids.pop()
        scored.pop()
    text = ""
    for learned, run in groupby(zip(ids, scored, strict=True), key=lambda pair: pair[1]):
        part = shown_text([token for token, _ in run], tokenizer)
        text += f"«{part}»" if learned else part
    return text if len(text) <= LETTERS else f"{text[:LETTERS]} ..."


def shown_text(ids: list[int], tokenizer: Tokenizer) -> str:
    """The text of ids on one line; the end of text, which decodes to nothing, is named."""
    pieces, rest = [], list(ids)
    while tokenizer.eos_id in rest:
        cut = rest.index(tokenizer.eos_id)
        pieces.append(tokenizer.decode(rest[:cut]))
        rest = rest[cut + 1 :]
    text = "<end>".join([*pieces, tokenizer.decode(rest)])
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text
    )
