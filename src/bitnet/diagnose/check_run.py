"""A recorded run: are its checkpoints whole, do its files say what happened, and does it happen again?
Suspects: checkpoint, and others.

The strongest test of a run is to repeat it. The update after a checkpoint is made again from its weights, and
its loss must be the recorded one; if not, the rows, the weights or the loss have changed. Then the loss of
the next update is compared, which depends on the optimizer, and the weights, where the next checkpoint was
kept too. Update 1 is repeated from the checkpoint of the start. Not here: the rehearsal, short runs of the
real trainer (check_rehearsal.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bitnet.data.stream import Batch
from bitnet.diagnose import check_checkpoints, reference_updates
from bitnet.diagnose.check_checkpoints import stored
from bitnet.diagnose.check_evaluation import equal_batches
from bitnet.diagnose.finding import HINT, PROOF, STRONG, Check, Part, Suspect, below, worst
from bitnet.diagnose.subject import Subject
from bitnet.errors import BitnetError
from bitnet.evaluate import loss as loss_module
from bitnet.files import read_json
from bitnet.run import checkpoint as checkpoints
from bitnet.run.checkpoint import Checkpoint
from bitnet.run.eval_set import load_frozen_set
from bitnet.run.layout import RunLayout
from bitnet.run.metrics import read_lines
from bitnet.text.tokenizer import load_tokenizer
from bitnet.train.config import RunConfig

LOSS_GAP = 5e-3
"""Nats by which a repeated loss may differ: another machine adds in another order; the same machine repeats
to the bit."""
UPDATE_WORK = 2e11
"""Tokens times parameters of an update that is still repeated without --full: about ten seconds on two
cores."""
UPSTREAM: frozenset[Suspect] = frozenset({"data", "quantization", "gradients", "optimizer"})

CHECKPOINT = Part("checkpoint", "files are cut back to the checkpoint on resume", weight=STRONG)
TRAINING = Part("training", "NaN and infinities are written as null", weight=STRONG, explained_by=UPSTREAM)
SCHEDULE = Part("optimizer", "recomputed from meta/config.json")
DATA = Part("data", "SHA-256 of both, and of the shards'")
EVALUATION = Part("evaluation", "meta/dataset_fingerprint.json")
OPTIMIZER = Part(
    "optimizer",
    "two updates in a row from a checkpoint",
    weight=STRONG,
    explained_by={"data", "quantization", "gradients", "checkpoint"},
)
MODEL = Part("quantization", "loss of the update after a checkpoint, on the rows of that step")
ROWS = Part("data", MODEL.source, weight=STRONG, explained_by={"quantization", "gradients", "checkpoint"})


def recorded(subject: Subject) -> Iterator[Check]:
    """All checks of an existing run."""
    layout = subject.layout
    assert layout is not None
    yield from check_checkpoints.kept(subject, layout)
    yield from scalars(layout, subject.settings, resumed=True)
    yield same_tokenizer(subject, layout)
    reloads = True
    for check in frozen_and_evaluated(subject, layout):
        reloads = reloads and (check.ok or check.suspect != "checkpoint")
        yield check
    if _affordable(subject):
        yield from repeats(repeated(subject, layout), reloads=reloads)
    yield from probes(layout, subject.step, finished=subject.step >= subject.settings.train.total_steps)


def scalars(layout: RunLayout, settings: RunConfig, *, resumed: bool) -> Iterator[Check]:
    """metrics/scalars.jsonl has every update once, finite, at its own rates, and counted right.

    resumed: whether the run may have been resumed with other settings than it recorded.
    """
    lines = read_lines(layout.scalars)
    rows, steps = lines.rows, [row["step"] for row in lines.rows]
    yield CHECKPOINT(
        "every update is recorded once", "a resume left a gap or a repeat in metrics/scalars.jsonl"
    ).holds(
        steps == list(range(1, len(steps) + 1)) and not lines.skipped,
        len(steps),
        "1, 2, 3 ... without gap or repeat",
    )

    broken = [row["step"] for row in rows if not _is_finite(row.get("loss"))]
    yield TRAINING(
        "recorded losses are numbers", f"no finite loss at updates {broken[:5]}: training diverged"
    ).holds(len(broken) <= len(rows) // 100, len(broken), "at most 1 of 100 updates refused")

    gaps: dict[str, float] = {}
    training = settings.to_json()["training"]
    for row in rows:
        lr, wd = reference_updates.rates(training, row["step"])
        known = isinstance(row.get("lr"), float | int)
        gaps[f"update {row['step']}"] = max(abs(row["lr"] - lr), abs(row["wd"] - wd)) if known else math.inf
    yield SCHEDULE(
        "recorded rates follow the schedule", "did not run at its rates", weight=STRONG if resumed else PROOF
    ).below(gaps or 0.0, 1e-6 * settings.train.peak_lr + 1e-12, "difference of learning rate or decay")

    train = settings.train
    per_step = train.batch_size * train.grad_accumulation_steps * train.seq_len
    wrong = [row["step"] for row in rows if row.get("tokens_seen", 0) % (row["step"] * per_step)]
    yield DATA(
        "tokens are counted right",
        f"tokens_seen is wrong from update {wrong[:1]}",
        source="batch_size * accumulation * seq_len",
        weight=HINT,
    ).holds(not wrong, len(wrong), f"{per_step:,} tokens an update and process")


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def same_tokenizer(subject: Subject, layout: RunLayout) -> Check:
    """The run's tokenizer is the one of its data."""
    tokenizer, made = subject.task.tokenizer, read_json(layout.fingerprint)
    then, now = (t.describe()["tokenizer_sha256"] for t in (load_tokenizer(layout.tokenizer), tokenizer))
    same = then == now == made.get("tokenizer_sha256", now)
    return DATA(
        "run and data have one tokenizer", "the model was trained on other ids than those it is given now"
    ).holds(same and made.get("tokenizer_vocab_size") == tokenizer.vocab_size, then[:12], now[:12])


@torch.no_grad()
def frozen_and_evaluated(subject: Subject, layout: RunLayout) -> Iterator[Check]:
    """The frozen set is the one of the start, and the checkpoint still has the held-out loss that was
    recorded for it.
    """
    try:
        frozen = [Batch(**tensors) for tensors in load_frozen_set(layout)]
    except BitnetError as error:
        yield EVALUATION("frozen evaluation set is intact", str(error)).holds(
            False, "damaged", "the SHA-256 of meta/dataset_fingerprint.json"
        )
        return
    same = equal_batches(frozen, subject.task.frozen_evaluation())
    yield EVALUATION(
        "frozen evaluation set is intact",
        "the run was measured on other rows than its task holds out",
        source="eval/frozen_set.safetensors",
        explained_by={"data"},
    ).holds(same, same, "the task's held-out rows")

    told = [row["eval_loss"] for row in read_lines(layout.evaluations).rows if row["step"] == subject.step]
    if told:
        found = loss_module.held_out_loss(subject.model, frozen, subject.task.tokenizer)["nats_per_token"]
        gap = abs(found - float(told[-1]))
        yield CHECKPOINT(
            "checkpoint reloads to the recorded loss",
            "the weights are not those that were evaluated, or evaluation has changed",
            source="eval/eval_results.jsonl",
            weight=PROOF,
            explained_by={"quantization", "evaluation"},
        ).holds(below(gap, LOSS_GAP), found, f"{told[-1]:.5f} nats/token, within {LOSS_GAP:g}")


@dataclass
class Repeated:
    """By how much updates that were made again differ from the recorded ones. Keys name the update."""

    first: dict[str, float] = field(default_factory=dict)
    """Nats, of the update after a checkpoint."""
    second: dict[str, float] = field(default_factory=dict)
    """Nats, of the update after that."""
    moved: dict[str, float] = field(default_factory=dict)
    """Distance of the weights after the first update, in units of the recorded change."""


def _affordable(subject: Subject) -> bool:
    """Whether a whole update of the run's own size takes seconds, not minutes."""
    work = subject.settings.train.tokens_per_step * subject.config.total_params
    return subject.full or subject.device.type == "cuda" or work < UPDATE_WORK


def repeated(subject: Subject, layout: RunLayout) -> Repeated:
    """Two updates again after the first checkpoint that is kept, the last one, and the last one that was
    followed by another at the next update.
    """
    losses: dict[int, Any] = {row["step"]: row.get("loss") for row in read_lines(layout.scalars).rows}
    kept = layout.checkpoint_steps()
    steps = [step for step in kept if isinstance(losses.get(step + 1), float)]
    followed = [step for step in steps if step + 1 in kept]

    found = Repeated()
    for step in sorted({*steps[:1], *steps[-1:], *followed[-1:]}):
        try:
            before = checkpoints.load_checkpoint(layout.checkpoint(step))
        except BitnetError:
            continue  # damaged: another check's finding
        again, after = _again(subject, before)
        found.first[f"update {step + 1}"] = abs(again[0] - losses[step + 1])
        if len(again) > 1 and isinstance(losses.get(step + 2), float):
            found.second[f"update {step + 2}"] = abs(again[1] - losses[step + 2])
        if step + 1 in kept:
            right = stored(layout, step + 1).model
            found.moved[f"update {step + 1}"] = moved_otherwise(before.model, after, right)
    return found


def _again(subject: Subject, before: Checkpoint) -> tuple[list[float], dict[str, Tensor]]:
    """The losses of the next two updates after a checkpoint, and the weights after the first."""
    model = subject.new_model(subject.config)
    checkpoints.load_weights(model, before)
    optimizers = subject.run_optimizers(model)
    optimizers.load_state_tensors(before.optimizer)
    losses: list[float] = []
    after: dict[str, Tensor] = {}
    for report in subject.train(model, optimizers, subject.task.source, start_step=before.step):
        losses.append(report.loss)
        if len(losses) == 2:
            break
        after = {name: p.detach().cpu().clone() for name, p in model.named_parameters()}
    return losses, after


def moved_otherwise(before: dict[str, Tensor], after: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """|after - right| / |right - before| over all weights."""
    difference = sum(float(((after[name].double() - right[name].double()) ** 2).sum()) for name in after)
    size = sum(float(((right[name].double() - before[name].double()) ** 2).sum()) for name in after)
    return math.sqrt(difference / size) if size else 0.0 if difference == 0 else math.inf


def repeats(found: Repeated, *, reloads: bool) -> Iterator[Check]:
    """The same losses and weights again.

    reloads: whether the checkpoint has its recorded held-out loss. Where it has not, and updates do not
    repeat either, it is the model that computed otherwise, and not the rows or the one file.
    """
    if found.first:
        gap, where = worst(found.first)
        if reloads or below(gap, LOSS_GAP):
            part, what = ROWS, "trained on other rows than its own: resumed elsewhere, or the data changed"
        else:
            part, what = MODEL, "computed by another forward pass or loss than the present one"
        yield part("updates repeat with the recorded loss", f"{where} was {what}").below(
            gap, LOSS_GAP, "nats from metrics/scalars.jsonl"
        )
    if found.second:
        yield OPTIMIZER(
            "the update after it repeats too", "the update before it moved the weights otherwise than now"
        ).below(found.second, 4 * LOSS_GAP, "nats from metrics/scalars.jsonl")
    if found.moved:
        yield OPTIMIZER(
            "updates repeat with the recorded weights",
            "moved the weights otherwise than it does now",
            source="two checkpoints in a row",
        ).below(found.moved, 0.05, "relative error of the change")


def probes(layout: RunLayout, step: int, *, finished: bool) -> Iterator[Check]:
    """Codes flip early and settle late; a run that is still going need not have settled."""
    rows = [row for row in read_lines(layout.quantization).rows if row["step"] <= step]
    flips = [row["flipped_pct"] for row in rows if isinstance(row.get("flipped_pct"), float)]
    if not flips:
        return
    early, late = max(flips[: max(len(flips) // 2, 1)]), flips[-1]
    settled = not finished or len(flips) < 4 or late <= max(early, 0.02)
    yield OPTIMIZER(
        "codes flip early and settle late",
        "codes never move, or never come to rest",
        source="the magnitude of a latent weight is its confidence (b1.58 training tips)",
        weight=HINT,
        explained_by=UPSTREAM - {"optimizer"},
    ).holds(
        0 < early < 0.75 and settled,
        {"early": round(early, 5), "late": round(late, 5)},
        "some flip in the first half of the probes, fewer at the last",
    )
