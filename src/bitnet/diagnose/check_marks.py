"""What the marks in a row mean: what is scored, where an example or a document ends, what counts as held out.
Suspects: data, evaluation.

Where answers are learned, a prompt is not scored and its answer is, end mark included; where everything is
learned, no real token is left out. Each document of a text ends with the end-of-text id. An example that
says the same as a held-out one (a + b for b + a; a copy that differs in white space) is held out with it. Not
here: whether rows are in order (check_data.py, check_plan.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from bitnet.corpus import holdout
from bitnet.data.stream import Batch
from bitnet.diagnose import reference
from bitnet.diagnose.finding import STRONG, Check, Part
from bitnet.diagnose.ngrams import examples, rows_in
from bitnet.diagnose.subject import Subject
from bitnet.run import checkpoint as checkpoints

MARKS = Part("data", "docs/experiments; loss_on")
EXAMPLES = Part("data", "data/generated.py")
HELD_OUT = Part("evaluation", "held-out means never trained on", explained_by={"data"})
RIGHT, NEARLY, LEAKED = 0.99, 0.7, 0.01
ENOUGH_ENDS = 12  # documents that must be expected in what was read before their number says something
ROWS, PAIRS = 256, 4


class Marked(NamedTuple):
    """One example of a row: ids, and whether each is scored."""

    ids: list[int]
    scored: list[bool]


def marks(subject: Subject, batch: Batch) -> Iterator[Check]:
    """All checks of this file. batch: training rows from all along the plan."""
    few, frozen = batch.select(slice(ROWS)), subject.task.frozen_evaluation()
    yield scored(subject, few, MARKS, "training rows")
    for held_out in frozen[:1]:
        yield scored(subject, held_out.select(slice(ROWS)), HELD_OUT, "held-out rows")
    yield from document_ends(subject, batch)
    if subject.task.end_mark:
        yield from equal_examples(subject, frozen, batch)
        if learns_answers(subject):
            yield one_answer(marked(batch, end_id(subject)))
        yield from examples_differ(few, end_id(subject))
    yield equal_documents()
    yield from references(subject)


def learns_answers(subject: Subject) -> bool:
    """Whether the task says that only answers are scored."""
    said = subject.data.get("loss_on")
    return said == "answers" if said is not None else "conversations" in subject.data


def scored(subject: Subject, batch: Batch, part: Part, which: str) -> Check:
    """Whether what should be scored is, and nothing else."""
    if not learns_answers(subject):
        share = all_scored(batch, subject.task.tokenizer.pad_id)
        # an experiment of the user's own may have a mask of its own
        meant = subject.data.get("loss_on") is None and share < NEARLY
        return part(
            f"every real token is scored: {which}", "part of the text is not learned from, or padding is"
        ).holds(share == 1.0 or meant, share, "1.0 of text scored, and none of the padding")

    before = before_answers(subject)
    found = [one for one in marked(batch, end_id(subject)) if not all(one.scored[1:])]
    share = sum(answer_scored(one, before) for one in found) / max(len(found), 1)
    return part(
        f"answers with their end are scored, prompts are not: {which}",
        "prompts are scored, or answers or their end marks are not",
    ).at_least(share, RIGHT, f"of {len(found)} whole examples")


def end_id(subject: Subject) -> int:
    """The id that ends an example."""
    mark, tokenizer = subject.task.end_mark, subject.task.tokenizer
    return tokenizer.encode(mark)[0] if mark else tokenizer.eos_id


def all_scored(batch: Batch, pad_id: int) -> float:
    """Share of targets that are scored where they are text, and not where they are padding at the end of a
    row.
    """
    targets, mask = batch.targets.numpy(), batch.loss_mask.numpy()
    real = np.cumsum((targets != pad_id)[:, ::-1], axis=1)[:, ::-1] > 0
    # a single such id at the end of a row may be the end of a text
    padded = ~real & (targets[:, -2:] == pad_id).all(axis=1, keepdims=True)
    return float((mask == real)[real | padded].mean()) if real.any() else 0.0


def before_answers(subject: Subject) -> list[int]:
    """The last ids, at most two, that all prompts of the task share: what stands before an answer."""
    ends = [subject.task.tokenizer.encode(prompt)[-2:] for prompt in subject.task.prompts]
    for width in (2, 1):
        found = {tuple(ids[-width:]) for ids in ends}
        if len(found) == 1:
            return list(found.pop())
    return []


def marked(batch: Batch, end: int) -> Iterator[Marked]:
    """The whole examples of a batch: what stands between end marks, the mark included."""
    parts = (batch.input_ids.tolist(), batch.targets.tolist(), batch.loss_mask.tolist())
    for ids, targets, mask in zip(*parts, strict=True):
        row, learned = [ids[0], *targets], [False, *mask]
        begin = 0
        for place, token in enumerate(row):
            if token == end:
                if place > begin:
                    yield Marked(row[begin : place + 1], learned[begin : place + 1])
                begin = place + 1


def answer_scored(one: Marked, before: Sequence[int]) -> bool:
    """Whether nothing is scored up to the answer and everything from there to the end mark, and the answer
    begins where prompts end.
    """
    if True not in one.scored or not one.scored[-1]:
        return False
    start = one.scored.index(True)
    whole = all(one.scored[start:]) and start > 0 and len(one.ids) - start >= 2
    return whole and (not before or one.ids[max(start - len(before), 0) : start] == list(before))


def document_ends(subject: Subject, batch: Batch) -> Iterator[Check]:
    """A text's documents end in the end-of-text id: as many as there are documents."""
    facts = subject.task.source.fingerprint()
    if not facts.get("documents") or not facts.get("dataset_size_tokens"):
        return
    tokens = batch.targets.numel()
    wanted = tokens * int(facts["documents"]) / int(facts["dataset_size_tokens"])
    found = int((batch.targets == subject.task.tokenizer.eos_id).sum())
    if wanted >= ENOUGH_ENDS:
        yield MARKS(
            "documents end in the end-of-text id",
            "the model never learns where a text ends",
            source="documents of the fingerprint",
            weight=STRONG,
        ).holds(
            0.5 * wanted <= found <= 1.5 * wanted,
            found,
            f"{wanted:.0f} in {tokens:,} tokens, within half of it",
        )


def equal_examples(subject: Subject, frozen: Sequence[Batch], batch: Batch) -> Iterator[Check]:
    """No training example is a held-out one with its two operands changed over and the same answer."""
    tokenizer, end = subject.task.tokenizer, end_id(subject)
    kept, trained = (examples(rows_in(one, tokenizer.pad_id), end) for one in (frozen, [batch]))
    asked = [twin for one in kept if (twin := swapped(tokenizer.decode(list(one)))) is not None]
    if not asked:
        return
    found = [text for text in asked if tuple(tokenizer.encode(text)) in trained]
    share = len(found) / len(asked)
    yield HELD_OUT(
        "an example that says the same is held out too",
        f"trained on {found[:1]}: the held-out one is known by its twin",
    ).holds(
        share <= LEAKED,
        share,
        f"<= {LEAKED:g} of {len(asked)} held-out examples with their operands changed over occur in training",
    )


def one_answer(found: Iterator[Marked]) -> Check:
    """A prompt has one answer."""
    answers: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
    for one in found:
        if True in one.scored:
            start = one.scored.index(True)
            answers.setdefault(tuple(one.ids[:start]), set()).add(tuple(one.ids[start:]))
    twice = sum(len(said) > 1 for said in answers.values())
    return EXAMPLES("a prompt has one answer", "the same question is answered differently").holds(
        not twice, twice, f"0 of {len(answers)} prompts with two answers"
    )


def examples_differ(batch: Batch, end: int) -> Iterator[Check]:
    """Where several examples share a row, they are drawn one by one."""
    rows = [batch.select(slice(row, row + 1)) for row in range(min(len(batch.input_ids), 64))]
    found = [[tuple(one.ids) for one in marked(row, end)] for row in rows]
    several = [ids for ids in found if len(ids) >= 3]
    if len(several) >= 8:
        share = sum(len(set(ids)) / len(ids) for ids in several) / len(several)
        yield EXAMPLES(
            "examples of a row differ", "one example fills a row again and again", weight=STRONG
        ).at_least(share, 0.5, "of the examples of a row are different ones")


def swapped(text: str) -> str | None:
    """`b op a = c` for `a op b = c`, or None for another form or where nothing changes."""
    words = text.split(" ")
    if len(words) != 5 or words[3] != "=" or words[0] == words[2]:
        return None
    return " ".join([words[2], words[1], words[0], *words[3:]])


def equal_documents() -> Check:
    """Copies of a document that differ in white space or in how accents are written are held out together,
    different ones apart.
    """
    one = "The caf\u00e9 is  old.\nIt has two rooms."
    copies = ["The cafe\u0301 is old. It has two rooms.", " The caf\u00e9 is old.\n\nIt has two rooms. \n"]
    others = ["The cafe is old. It has two rooms.", "The caf\u00e9 is old. It has three rooms.", ""]
    equal = [holdout.content_hash(text) == holdout.content_hash(one) for text in copies]
    apart = [holdout.content_hash(text) != holdout.content_hash(one) for text in others]
    return HELD_OUT(
        "copies of a document are held out together",
        "a copy of a held-out document is trained on",
        source="corpus/holdout.py",
    ).holds(
        all(equal + apart),
        {"copies": equal, "others": apart},
        "copies that differ in white space or composition equal, other texts apart",
    )


@torch.no_grad()
def references(subject: Subject) -> Iterator[Check]:
    """Rows of a preference carry what the weights that the run begins with say of their scored targets."""
    begun = subject.settings.train.start_from
    rows = subject.task.source.rows(np.arange(PAIRS, dtype=np.int64))
    if rows.reference is None or not begun or not Path(begun).is_dir():
        return
    weights = checkpoints.load_checkpoint(Path(begun), optimizer=False).model
    scores = reference.logits(weights, subject.config, rows.input_ids, rows.segments)
    right = torch.stack(
        [-reference.summed_loss(scores[row], rows.targets[row], rows.loss_mask[row]) for row in range(PAIRS)]
    )
    gap = (rows.reference.double() - right).abs() / right.abs().clamp(min=1.0)
    yield MARKS(
        "a preference's rows carry the start weights' view",
        "log p0 is of other weights, targets or rows",
        source="arXiv:2305.18290; weights of train.start_from",
    ).below(float(gap.max()), 0.01)
