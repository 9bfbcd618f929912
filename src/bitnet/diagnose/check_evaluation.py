"""Do the numbers that judge the model mean what they say? Suspect: evaluation.

The loss is recomputed from the model's own logits; the held-out rows must be the same at every call and must not be trained on; and a
model that never trained must not pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitnet.data.stream import Batch
from bitnet.diagnose import reference
from bitnet.diagnose.check import STRONG, Check, Suspect, below
from bitnet.diagnose.counting import Rows, examples, rows_of, shingles
from bitnet.diagnose.probing import off
from bitnet.diagnose.subject import Subject, narrow
from bitnet.evaluate import loss as loss_module
from bitnet.nn.transformer import BitNetTransformer

STRETCH, LEAKED_TEXT, LEAKED_EXAMPLES = 24, 0.25, 0.01
"""Running text is compared by stretches of 24 tokens: stock phrases are shorter; a leaked row has nearly all of its stretches in
the training rows. Tasks with examples hold each out as a whole. Both limits are ours."""
ROWS, COLUMNS = 8, 128
JUDGED = 6
UPSTREAM: frozenset[Suspect] = frozenset({"data"})


def evaluation(subject: Subject, training: Batch) -> Iterator[Check]:
    """All checks of this file. training: rows of training, as many as were read."""
    frozen = list(subject.task.frozen_evaluation())
    yield from frozen_set(subject, frozen)
    yield from apart(subject, frozen, training)
    yield from measured_loss(subject, frozen)
    yield from two_modes(subject, frozen)
    yield from judged(subject)
    yield from knows_right_answers(subject, frozen)


def frozen_set(subject: Subject, frozen: Sequence[Batch]) -> Iterator[Check]:
    """The same held-out rows at every call, with next tokens as targets."""
    again = subject.task.frozen_evaluation()
    same = len(frozen) == len(again) and all(one.equals(other) for one, other in zip(frozen, again, strict=False))
    yield Check(
        name="frozen evaluation is frozen", suspect="evaluation", ok=same and bool(frozen), value=same,
        expected="the same rows at every call", source="losses of different steps must be comparable",
        detail="the held-out rows change from call to call",
    )  # fmt: skip
    shifted = [bool(torch.equal(b.targets[:, :-1], b.input_ids[:, 1:])) for b in frozen]
    yield Check(
        name="held-out targets are the next tokens", suspect="evaluation", ok=all(shifted), value=all(shifted),
        expected="true of every row", source="definition of next-token prediction",
        detail="the held-out loss is taken of other targets than the training loss", explained_by=UPSTREAM,
    )  # fmt: skip


def apart(subject: Subject, frozen: Sequence[Batch], training: Batch) -> Iterator[Check]:
    """No held-out text among the training rows that were read."""
    tokenizer = subject.task.tokenizer
    trained = rows_of(training, tokenizer.pad_id)
    kept = [row for batch in frozen for row in rows_of(batch, tokenizer.pad_id)]
    end = tokenizer.encode(subject.task.end_mark)[0] if subject.task.end_mark else None
    share, limit, what = _leaked_text(kept, trained) if end is None else _leaked_examples(kept, trained, end)
    yield Check(
        name="held-out text is not trained on", suspect="evaluation", ok=share <= limit, value=share,
        expected=f"<= {limit:g} of the held-out {what} occur in {len(trained):,} training rows", source="held-out means never trained on",
        detail="evaluation measures memory, not learning: the good numbers mean nothing", explained_by=UPSTREAM,
    )  # fmt: skip


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
    found, again = (loss_module.held_out_loss(subject.model, pieces, subject.task.tokenizer) for _ in range(2))
    nats, tokens = 0.0, 0
    for piece in pieces:
        logits = subject.model(piece.input_ids.to(subject.device)).cpu()
        nats += float(reference.summed_loss(logits, piece.targets, piece.loss_mask))
        tokens += int(piece.loss_mask.sum())
    written = subject.task.tokenizer.decode(batch.targets[batch.loss_mask].tolist())
    size = len(written.encode("utf-8", errors="replace"))
    right = nats / max(tokens, 1)
    gap = abs(found["nats_per_token"] - right)
    yield Check(
        name="held-out loss is what it says", suspect="evaluation", ok=below(gap, 1e-3 * max(1.0, right)), value=found["nats_per_token"],
        expected=f"{right:.5f} nats/token", source="mean cross-entropy over the scored targets of the model's own logits",
        detail="evaluation measures something else than the model's loss",
    )  # fmt: skip
    per_byte = nats / math.log(2) / size if size else math.nan
    agree = abs(found["bits_per_byte"] / per_byte - 1) <= 0.05 if size else True
    yield Check(
        name="bits per byte count the text's bytes", suspect="evaluation", ok=agree, value=found["bits_per_byte"],
        expected=f"{per_byte:.4f}, within 5% (cut characters)", source="nats / ln 2 / UTF-8 bytes of the decoded targets",
        detail="the byte count does not belong to this text", weight=STRONG, explained_by=UPSTREAM,
    )  # fmt: skip
    drift = abs(found["nats_per_token"] - again["nats_per_token"])
    yield Check(
        name="evaluation repeats", suspect="evaluation", ok=below(drift, 1e-6), value=drift,
        expected="<= 1e-6 nats between two measurements", source="nothing in it is random", detail="there is noise in the evaluation",
    )  # fmt: skip


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
    yield Check(
        name="evaluation computes as training does", suspect="evaluation", ok=below(error, 1e-4), value=error,
        expected="relative error <= 1e-4 between train and eval mode", source="the model has no dropout",
        detail="the model behaves differently when it is evaluated", explained_by=frozenset({"quantization"}),
    )  # fmt: skip


def judged(subject: Subject) -> Iterator[Check]:
    """Shares are shares, the count is kept, and a model that never trained does not pass."""
    fresh = subject.model if subject.fresh else subject.new_model(subject.config)
    metrics, again = (subject.task.judge(fresh, JUDGED) for _ in range(2))
    counts = {name: value for name, value in metrics.items() if name.endswith("_cases")}
    shares = {name: metrics[name.removesuffix("_cases")] for name in counts if name.removesuffix("_cases") in metrics}
    sound = bool(counts) and all(math.isfinite(value) for value in metrics.values()) and all(value >= 0 for value in shares.values())
    same = metrics == again
    yield Check(
        name="judge counts its cases and repeats", suspect="evaluation", ok=sound and same, value=f"{len(counts)} counted, repeats: {same}",
        expected="every figure with its cases, twice the same", source="the task's own interface",
        detail="the judge's figures are not finite, not counted, or change from call to call", weight=STRONG,
    )  # fmt: skip
    known = [criterion for criterion in subject.criteria if criterion.metric in metrics]
    passed = [str(criterion) for criterion in known if criterion.met(metrics[criterion.metric])]
    yield Check(
        name="an untrained model does not pass", suspect="evaluation", ok=not known or len(passed) < len(known), value=passed,
        expected="not all criteria met", source="weights that never trained",
        detail="the judge is satisfied with a model that knows nothing", weight=STRONG,
    )  # fmt: skip


class _History:
    """What `Oracle` keeps instead of keys and values: the ids themselves."""

    def __init__(self, rows: int, capacity: int) -> None:
        self.rows, self.capacity = rows, capacity
        self.ids: list[list[int]] = [[] for _ in range(rows)]

    @property
    def length(self) -> int:
        return len(self.ids[0])


class Oracle(torch.nn.Module):
    """A model that has the given texts by heart: after a beginning of one of them it is sure of the next token."""

    def __init__(self, model: BitNetTransformer, texts: Iterable[tuple[int, ...]]) -> None:
        super().__init__()
        self.config, self.final_norm = model.config, model.final_norm
        self.next = {text[:cut]: text[cut] for text in texts for cut in range(1, len(text))}

    def new_cache(self, rows: int, capacity: int | None = None) -> _History:
        return _History(rows, min(capacity or self.config.max_seq_length, self.config.max_seq_length))

    def forward(self, input_ids: Tensor, cache: _History) -> Tensor:
        logits = torch.zeros(*input_ids.shape, self.config.vocab_size, device=input_ids.device)
        for row, new in enumerate(input_ids.tolist()):
            for place, token in enumerate(new):
                cache.ids[row].append(token)
                logits[row, place, self.next.get(tuple(cache.ids[row]), 0)] = 20.0
        return logits


def knows_right_answers(subject: Subject, frozen: Sequence[Batch]) -> Iterator[Check]:
    """Where success is an exact match: a model that says the right answers of the held-out examples passes."""
    wanted = [criterion for criterion in subject.criteria if criterion.metric == "exact_match"]
    if not wanted or subject.task.end_mark is None:
        return
    tokenizer = subject.task.tokenizer
    rows = [row for batch in frozen for row in rows_of(batch, tokenizer.pad_id)]
    oracle: Any = Oracle(subject.model, examples(rows, tokenizer.encode(subject.task.end_mark)[0]))
    found = subject.task.judge(oracle, JUDGED)["exact_match"]
    yield Check(
        name="right answers pass", suspect="evaluation", ok=wanted[0].met(found), value=found, expected=str(wanted[0]),
        source="a stand-in for the model that has the held-out examples by heart", detail="the judge does not recognise right answers",
        explained_by=frozenset({"data", "decoding"}),
    )  # fmt: skip
