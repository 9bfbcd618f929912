"""Do the numbers that judge the model mean what they say? Suspect: evaluation.

The loss is recomputed from the model's own logits; the held-out rows must be the same at every call and must
not be trained on. Not here: what the experiment's judge makes of a model (check_judge.py).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from bitnet.data.stream import Batch
from bitnet.diagnose import reference
from bitnet.diagnose.check_marks import end_id
from bitnet.diagnose.finding import STRONG, Check, Part, below
from bitnet.diagnose.ngrams import Rows, examples, rows_in, shingles
from bitnet.diagnose.subject import Subject
from bitnet.diagnose.trace import off
from bitnet.diagnose.twin import KINDS, VOCABULARY, twin_of
from bitnet.diagnose.watch import narrow
from bitnet.evaluate import loss as loss_module
from bitnet.text.tokenizer import Tokenizer

STRETCH, LEAKED_TEXT, LEAKED_EXAMPLES = 24, 0.25, 0.01
"""Running text is compared by stretches of 24 tokens: stock phrases are shorter; a leaked row has nearly all
of its stretches in the training rows. Tasks with examples hold each out as a whole. Both limits are ours."""
ROWS, COLUMNS, USUAL = 8, 128, 20
HELD_OUT = Part("evaluation", "held-out means never trained on", explained_by={"data"})
LOSS = Part("evaluation", "mean cross-entropy over the scored targets of the model's own logits")
SAME_MODEL = Part("evaluation", "the model has no dropout", explained_by={"quantization"})


def evaluation(subject: Subject, training: Batch) -> Iterator[Check]:
    """All checks of this file. training: rows of training, as many as were read."""
    frozen = list(subject.task.frozen_evaluation())
    yield from frozen_set(subject, frozen)
    pad = subject.task.tokenizer.pad_id
    kept, trained = rows_in(frozen, pad), rows_in([training], pad)
    yield apart(subject, kept, trained)
    yield from measured_loss(subject, narrow(frozen[0].select(slice(ROWS)), COLUMNS))
    yield two_modes(subject, narrow(frozen[0].select(slice(ROWS)), COLUMNS))
    yield same_tokens(subject, kept, trained)
    yield other_weights(subject)


def frozen_set(subject: Subject, frozen: Sequence[Batch]) -> Iterator[Check]:
    """The same held-out rows at every call, with next tokens as targets."""
    same = equal_batches(frozen, subject.task.frozen_evaluation())
    yield LOSS(
        "frozen evaluation is frozen",
        "the held-out rows change from call to call",
        source="losses of different steps must be comparable",
    ).holds(same and bool(frozen), same, "the same rows at every call")

    shifted = all(torch.equal(batch.targets[:, :-1], batch.input_ids[:, 1:]) for batch in frozen)
    yield HELD_OUT(
        "held-out targets are the next tokens",
        "the held-out loss is taken of other targets than the training loss",
        source="definition of next-token prediction",
    ).holds(shifted, shifted, "true of every row")


def equal_batches(one: Sequence[Batch], other: Sequence[Batch]) -> bool:
    """Whether two lists hold the same batches in the same order."""
    return len(one) == len(other) and all(a.equals(b) for a, b in zip(one, other, strict=True))


def apart(subject: Subject, kept: Rows, trained: Rows) -> Check:
    """No held-out text among the training rows that were read."""
    if subject.task.end_mark is None:
        share, limit, what = leaked_text(kept, trained), LEAKED_TEXT, f"stretches of {STRETCH} tokens"
    else:
        ours, theirs = (examples(rows, end_id(subject)) for rows in (kept, trained))
        share, limit, what = len(ours & theirs) / max(len(ours), 1), LEAKED_EXAMPLES, "examples"
    return HELD_OUT(
        "held-out text is not trained on",
        "evaluation measures memory, not learning: the good numbers mean nothing",
    ).holds(
        share <= limit, share, f"<= {limit:g} of the held-out {what} occur in {len(trained):,} training rows"
    )


def leaked_text(kept: Rows, trained: Rows) -> float:
    """Share of a held-out row's stretches that occur in training rows, on average over rows."""
    known = np.unique(shingles(trained, STRETCH))
    found = [shingles([row], STRETCH) for row in kept]
    shares = [float(np.isin(stretches, known).mean()) for stretches in found if len(stretches)]
    return float(np.mean(shares)) if shares else 0.0


def same_tokens(subject: Subject, kept: Rows, trained: Rows) -> Check:
    """What is usual in training occurs in the held-out rows: all operators, all kinds of examples."""
    ours, theirs = np.concatenate(kept), np.concatenate(trained)
    wanted = np.bincount(theirs, minlength=subject.config.vocab_size) / max(len(theirs), 1) * len(ours)
    missing = [int(token) for token in np.nonzero(wanted >= USUAL)[0] if token not in ours]
    return HELD_OUT(
        "held-out rows have the usual tokens of training",
        "never occur, so that part of the task is not evaluated",
        source="held out by chance, so alike on average",
        weight=STRONG,
    ).none(
        [repr(subject.task.tokenizer.decode([token])) for token in missing],
        f"tokens missing of those that should come {USUAL} times or more",
    )


@torch.no_grad()
def measured_loss(subject: Subject, batch: Batch) -> Iterator[Check]:
    """held_out_loss against the model's own logits, per token and per byte, twice."""
    pieces = [piece for piece in (batch.select(slice(3)), batch.select(slice(3, None))) if len(piece.targets)]
    found, again = (
        loss_module.held_out_loss(subject.model, pieces, subject.task.tokenizer) for _ in range(2)
    )
    logits = [subject.model(piece.input_ids.to(subject.device)).cpu() for piece in pieces]
    nats, tokens = summed(logits, pieces)
    right = nats / max(tokens, 1)
    gap = abs(found["nats_per_token"] - right)
    yield LOSS(
        "held-out loss is what it says", "evaluation measures something else than the model's loss"
    ).holds(below(gap, 1e-3 * max(1.0, right)), found["nats_per_token"], f"{right:.5f} nats/token")

    written = subject.task.tokenizer.decode(batch.targets[batch.loss_mask].tolist())
    size = len(written.encode("utf-8", errors="replace"))
    per_byte = nats / math.log(2) / size if size else math.nan
    agree = abs(found["bits_per_byte"] / per_byte - 1) <= 0.05 if size else True
    yield HELD_OUT(
        "bits per byte count the text's bytes",
        "the byte count does not belong to this text",
        source="nats / ln 2 / UTF-8 bytes of the decoded targets",
        weight=STRONG,
    ).holds(agree, found["bits_per_byte"], f"{per_byte:.4f}, within 5% (cut characters)")

    yield LOSS(
        "evaluation repeats", "there is noise in the evaluation", source="nothing in it is random"
    ).below(abs(found["nats_per_token"] - again["nats_per_token"]), 1e-6, "nats between two measurements")


def summed(logits: Sequence[torch.Tensor], batches: Sequence[Batch]) -> tuple[float, int]:
    """Cross-entropy of all scored targets in nats, and their number. logits: (B, T, V) of each batch."""
    nats, tokens = 0.0, 0
    for scores, batch in zip(logits, batches, strict=True):
        nats += float(reference.summed_loss(scores, batch.targets, batch.loss_mask))
        tokens += int(batch.loss_mask.sum())
    return nats, tokens


def two_modes(subject: Subject, batch: Batch) -> Check:
    """Evaluation sees the model that was trained: mode and gradients on or off change no logit.

    The median token counts: training may run fused forms, and where an input of a layer is half-way between
    two int8 codes, they may take the other one.
    """
    ids = batch.input_ids.to(subject.device)
    was = subject.model.training
    seen = []
    for training, grad in ((True, True), (True, False), (False, True), (False, False)):
        subject.model.train(training)
        with torch.set_grad_enabled(grad):
            seen.append(subject.model(ids).detach().flatten(0, 1))  # (B*T, V)
    subject.model.train(was)
    return SAME_MODEL(
        "evaluation computes as training does", "the model behaves differently when it is evaluated"
    ).below(
        max(statistics.median(map(off, other, seen[0])) for other in seen[1:]),
        1e-4,
        "relative error of the median token between train and eval mode",
    )


@torch.no_grad()
def other_weights(subject: Subject) -> Check:
    """held_out_loss where means differ: losses from 0 to 10 nats, batches with few and with many scored
    targets.
    """
    twin = twin_of(subject, KINDS[0])
    rows = twin.task.source.rows(np.arange(12, dtype=np.int64))
    pieces = [rows.select(slice(0, 2)), rows.select(slice(2, 9)), rows.select(slice(9, None))]
    weights = {name: weight.detach() for name, weight in twin.model.named_parameters()}
    logits = [
        reference.logits(weights, twin.config, piece.input_ids.to(twin.device), piece.segments).cpu()
        for piece in pieces
    ]
    nats, tokens = summed(logits, pieces)
    found = loss_module.held_out_loss(twin.model, pieces, cast(Tokenizer, _Ids()))
    gap = {
        "nats per token": abs(found["nats_per_token"] - nats / tokens),
        "tokens": abs(found["tokens"] - tokens),
    }
    return SAME_MODEL(
        "held-out loss is the mean over scored tokens",
        "is another mean, or of other targets or texts",
        source="independent float64 computation on a twin of the model",
    ).below(gap, 0.02, "nats")


class _Ids:
    """A tokenizer for a twin's ids: three bytes each."""

    def byte_lengths(self) -> NDArray[np.int64]:
        return np.full(VOCABULARY, 3, dtype=np.int64)
