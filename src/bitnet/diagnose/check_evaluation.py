"""Do the numbers that judge the model mean what they say? Suspect: evaluation.

The loss is recomputed from the model's own logits; the held-out rows must be the same at every call and must
not be trained on. Not here: what the experiment's judge makes of a model (check_judge.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from bitnet.data.stream import Batch
from bitnet.diagnose import reference
from bitnet.diagnose.finding import STRONG, Check, Part, Suspect, below
from bitnet.diagnose.ngrams import Rows, examples, rows_of, shingles
from bitnet.diagnose.subject import Subject
from bitnet.diagnose.trace import off
from bitnet.diagnose.twin import KINDS, VOCABULARY, twin_of
from bitnet.diagnose.watch import narrow
from bitnet.evaluate import loss as loss_module

STRETCH, LEAKED_TEXT, LEAKED_EXAMPLES = 24, 0.25, 0.01
"""Running text is compared by stretches of 24 tokens: stock phrases are shorter; a leaked row has nearly all
of its stretches in the training rows. Tasks with examples hold each out as a whole. Both limits are ours."""
ROWS, COLUMNS, USUAL = 8, 128, 20
UPSTREAM: frozenset[Suspect] = frozenset({"data"})
LOSS = Part(
    suspect="evaluation",
    source="independent float64 computation on a twin of the model",
    explained_by=frozenset({"quantization"}),
)
EVALUATION = Part("evaluation", "losses of different steps must be comparable", explained_by=UPSTREAM)


def evaluation(subject: Subject, training: Batch) -> Iterator[Check]:
    """All checks of this file. training: rows of training, as many as were read."""
    frozen = list(subject.task.frozen_evaluation())
    yield from frozen_set(subject, frozen)
    yield from apart(subject, frozen, training)
    yield from measured_loss(subject, frozen)
    yield from two_modes(subject, frozen)
    yield from same_tokens(subject, frozen, training)
    yield from other_weights(subject)


def frozen_set(subject: Subject, frozen: Sequence[Batch]) -> Iterator[Check]:
    """The same held-out rows at every call, with next tokens as targets."""
    again = subject.task.frozen_evaluation()
    same = len(frozen) == len(again) and all(
        one.equals(other) for one, other in zip(frozen, again, strict=False)
    )
    yield EVALUATION(
        "frozen evaluation is frozen", "the held-out rows change from call to call", explained_by=()
    ).holds(same and bool(frozen), same, "the same rows at every call")
    shifted = [bool(torch.equal(b.targets[:, :-1], b.input_ids[:, 1:])) for b in frozen]
    yield EVALUATION(
        "held-out targets are the next tokens",
        "the held-out loss is taken of other targets than the training loss",
        source="definition of next-token prediction",
    ).holds(all(shifted), all(shifted), "true of every row")


def apart(subject: Subject, frozen: Sequence[Batch], training: Batch) -> Iterator[Check]:
    """No held-out text among the training rows that were read."""
    tokenizer = subject.task.tokenizer
    trained = rows_of(training, tokenizer.pad_id)
    kept = [row for batch in frozen for row in rows_of(batch, tokenizer.pad_id)]
    end = tokenizer.encode(subject.task.end_mark)[0] if subject.task.end_mark else None
    share, limit, what = _leaked_text(kept, trained) if end is None else _leaked_examples(kept, trained, end)
    yield EVALUATION(
        "held-out text is not trained on",
        "evaluation measures memory, not learning: the good numbers mean nothing",
        source="held-out means never trained on",
    ).holds(
        share <= limit, share, f"<= {limit:g} of the held-out {what} occur in {len(trained):,} training rows"
    )


def same_tokens(subject: Subject, frozen: Sequence[Batch], training: Batch) -> Iterator[Check]:
    """What is usual in training occurs in the held-out rows: all operators, all kinds of examples."""
    pad = subject.task.tokenizer.pad_id
    trained, kept = (
        np.concatenate(rows)
        for rows in (rows_of(training, pad), [row for one in frozen for row in rows_of(one, pad)])
    )
    wanted = np.bincount(trained, minlength=subject.config.vocab_size) / max(len(trained), 1) * len(kept)
    missing = [int(token) for token in np.nonzero(wanted >= USUAL)[0] if token not in kept]
    names = [subject.task.tokenizer.decode([token]) for token in missing[:3]]
    yield EVALUATION(
        "held-out rows have the usual tokens of training",
        f"{names} never occur: part of the task is not evaluated",
        source="held out by chance, so alike on average",
        weight=STRONG,
    ).holds(not missing, len(missing), f"0 tokens missing of those that should come {USUAL} times or more")


def _leaked_examples(kept: Rows, trained: Rows, end: int) -> tuple[float, float, str]:
    ours, theirs = examples(kept, end), examples(trained, end)
    return len(ours & theirs) / max(len(ours), 1), LEAKED_EXAMPLES, "examples"


def _leaked_text(kept: Rows, trained: Rows) -> tuple[float, float, str]:
    known = np.unique(shingles(trained, STRETCH))
    shares = [float(np.isin(found, known).mean()) for row in kept if len(found := shingles([row], STRETCH))]
    return float(np.mean(shares)) if shares else 0.0, LEAKED_TEXT, f"stretches of {STRETCH} tokens"


def _small(frozen: Sequence[Batch]) -> Batch:
    """A few narrow rows with something scored in them."""
    return narrow(frozen[0].select(slice(ROWS)), COLUMNS)


@torch.no_grad()
def measured_loss(subject: Subject, frozen: Sequence[Batch]) -> Iterator[Check]:
    """held_out_loss against the model's own logits, per token and per byte, twice."""
    batch = _small(frozen)
    pieces = [batch.select(slice(3)), batch.select(slice(3, None))]
    pieces = [piece for piece in pieces if len(piece.input_ids)]
    found, again = (
        loss_module.held_out_loss(subject.model, pieces, subject.task.tokenizer) for _ in range(2)
    )
    nats, tokens = 0.0, 0
    for piece in pieces:
        logits = subject.model(piece.input_ids.to(subject.device)).cpu()
        nats += float(reference.summed_loss(logits, piece.targets, piece.loss_mask))
        tokens += int(piece.loss_mask.sum())
    written = subject.task.tokenizer.decode(batch.targets[batch.loss_mask].tolist())
    size = len(written.encode("utf-8", errors="replace"))
    right = nats / max(tokens, 1)
    gap = abs(found["nats_per_token"] - right)
    yield EVALUATION(
        "held-out loss is what it says",
        "evaluation measures something else than the model's loss",
        source="mean cross-entropy over the scored targets of the model's own logits",
        explained_by=(),
    ).holds(below(gap, 1e-3 * max(1.0, right)), found["nats_per_token"], f"{right:.5f} nats/token")
    per_byte = nats / math.log(2) / size if size else math.nan
    agree = abs(found["bits_per_byte"] / per_byte - 1) <= 0.05 if size else True
    yield EVALUATION(
        "bits per byte count the text's bytes",
        "the byte count does not belong to this text",
        source="nats / ln 2 / UTF-8 bytes of the decoded targets",
        weight=STRONG,
    ).holds(agree, found["bits_per_byte"], f"{per_byte:.4f}, within 5% (cut characters)")
    drift = abs(found["nats_per_token"] - again["nats_per_token"])
    yield EVALUATION(
        "evaluation repeats",
        "there is noise in the evaluation",
        source="nothing in it is random",
        explained_by=(),
    ).holds(below(drift, 1e-6), drift, "<= 1e-6 nats between two measurements")


def two_modes(subject: Subject, frozen: Sequence[Batch]) -> Iterator[Check]:
    """Evaluation sees the model that was trained: mode and gradients on or off change no logit."""
    ids = _small(frozen).input_ids.to(subject.device)
    was = subject.model.training
    seen = []
    for training, grad in ((True, True), (True, False), (False, True), (False, False)):
        subject.model.train(training)
        with torch.set_grad_enabled(grad):
            seen.append(subject.model(ids).detach())
    subject.model.train(was)
    error = max(off(other, seen[0]) for other in seen[1:])
    yield EVALUATION(
        "evaluation computes as training does",
        "the model behaves differently when it is evaluated",
        source="the model has no dropout",
        explained_by=frozenset({"quantization"}),
    ).holds(below(error, 1e-4), error, "relative error <= 1e-4 between train and eval mode")


@torch.no_grad()
def other_weights(subject: Subject) -> Iterator[Check]:
    """held_out_loss where means differ: losses from 0 to 10 nats, batches with few and with many scored
    targets.
    """
    twin = twin_of(subject, KINDS[0])
    rows = twin.task.source.rows(np.arange(12, dtype=np.int64))
    pieces = [rows.select(slice(0, 2)), rows.select(slice(2, 9)), rows.select(slice(9, None))]
    nats, tokens, weights = 0.0, 0, {name: weight.detach() for name, weight in twin.model.named_parameters()}
    for piece in pieces:
        scores = reference.logits(weights, twin.config, piece.input_ids.to(twin.device), piece.segments)
        nats += float(reference.summed_loss(scores.cpu(), piece.targets, piece.loss_mask))
        tokens += int(piece.loss_mask.sum())
    found = loss_module.held_out_loss(twin.model, pieces, _Ids())  # type: ignore[arg-type]
    gap = {
        "nats per token": abs(found["nats_per_token"] - nats / tokens),
        "tokens": abs(found["tokens"] - tokens),
    }
    yield LOSS(
        "held-out loss is the mean over scored tokens", "is another mean, or of other targets or texts"
    ).below(gap, 0.02, "nats")


class _Ids:
    """A tokenizer for a twin's ids: three bytes each."""

    def byte_lengths(self) -> np.ndarray:
        return np.full(VOCABULARY, 3, dtype=np.int64)
