"""A recorded run: are its checkpoints whole, do its files say what happened, and does it happen again?
Suspects: checkpoint, others.

The strongest question that a run can be asked is to repeat itself. The update after a checkpoint is done
again from its weights: the loss must be the recorded one (or the rows, the weights or the loss have changed),
then the loss after it (or the optimizer has), and where the next checkpoint was kept too, the weights must
come out the same. Update 1 is repeated from the checkpoint of the start. Not here: the rehearsal, two short
runs of the real trainer (check_rehearsal.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from bitnet.data.stream import Batch
from bitnet.diagnose import check_checkpoints, reference_updates
from bitnet.diagnose.finding import HINT, PROOF, STRONG, Check, Part, Suspect, below, worst
from bitnet.diagnose.subject import Subject
from bitnet.errors import BitnetError
from bitnet.evaluate import loss as loss_module
from bitnet.files import read_json
from bitnet.run import checkpoint as checkpoints
from bitnet.run.eval_set import load_frozen_set
from bitnet.run.layout import RunLayout
from bitnet.run.metrics import read_lines

LOSS_GAP = 5e-3
"""Nats by which a repeated loss may differ: sums in another order on another machine; the same machine
repeats to the bit."""
UPDATE_WORK = 2e11
"""Tokens times parameters of an update that is still repeated without --full: about ten seconds on two
cores."""
OTHER_MODEL = "was computed by another forward pass or loss than the present one"
OTHER_ROWS = "was trained on other rows than its own: resumed at the wrong place, or the data changed"
OPTIMIZER = Part(
    suspect="optimizer",
    source="two updates in a row from a checkpoint",
    weight=STRONG,
    explained_by=frozenset({"data", "quantization", "gradients", "checkpoint"}),
)
UPSTREAM: frozenset[Suspect] = frozenset({"data", "quantization", "gradients", "optimizer"})
CHECKPOINT = Part("checkpoint", "files are cut back to the checkpoint on resume", weight=STRONG)
TRAINING = Part("training", "NaN and infinities are written as null", weight=STRONG, explained_by=UPSTREAM)
DATA = Part("data", "batch_size * accumulation * seq_len", weight=HINT)
EVALUATION = Part("evaluation", "meta/dataset_fingerprint.json")


def recorded(subject: Subject) -> Iterator[Check]:
    """All checks of an existing run."""
    layout = subject.layout
    assert layout is not None
    yield from check_checkpoints.kept(subject, layout)
    yield from scalars(layout, subject.training, resumed=True)
    yield from same_tokenizer(subject, layout)
    reloads = True
    for check in frozen_and_evaluated(subject, layout):
        reloads = reloads and (check.ok or check.suspect != "checkpoint")
        yield check
    yield from repeats(subject, layout, reloads=reloads)
    yield from probes(layout, subject.step, finished=subject.step >= int(subject.training["total_steps"]))


def scalars(layout: RunLayout, training: Mapping[str, Any], *, resumed: bool) -> Iterator[Check]:
    """metrics/scalars.jsonl: every update once, finite, at its own rates, and counted right."""
    lines = read_lines(layout.scalars)
    rows = lines.rows
    steps = [row["step"] for row in rows]
    yield CHECKPOINT(
        "every update is recorded once", "a resume left a gap or a repeat in metrics/scalars.jsonl"
    ).holds(
        steps == list(range(1, len(steps) + 1)) and not lines.skipped,
        len(steps),
        "1, 2, 3 ... without gap or repeat",
    )
    broken = [
        row["step"]
        for row in rows
        if not isinstance(row.get("loss"), int | float) or not math.isfinite(row["loss"])
    ]
    yield TRAINING(
        "recorded losses are numbers", f"no finite loss at updates {broken[:5]}: training diverged"
    ).holds(len(broken) <= len(rows) // 100, len(broken), "at most 1 of 100 updates refused")
    gaps = {}
    for row in rows:
        lr, wd = reference_updates.rates(training, row["step"])
        gaps[f"update {row['step']}"] = (
            max(abs(row["lr"] - lr), abs(row["wd"] - wd))
            if isinstance(row.get("lr"), float | int)
            else math.inf
        )
    gap, where = worst(gaps) if gaps else (0.0, "")
    yield OPTIMIZER(
        "recorded rates follow the schedule",
        f"{where} did not run at its rates",
        source="recomputed from meta/config.json",
        weight=STRONG if resumed else PROOF,
        explained_by=(),
    ).holds(
        below(gap, 1e-6 * float(training["peak_lr"]) + 1e-12), gap, "learning rate and decay of every update"
    )
    per_step = (
        int(training["batch_size"]) * int(training["grad_accumulation_steps"]) * int(training["seq_len"])
    )
    wrong = [row["step"] for row in rows if row.get("tokens_seen", 0) % (row["step"] * per_step)]
    yield DATA("tokens are counted right", f"tokens_seen is wrong from update {wrong[:1]}").holds(
        not wrong, len(wrong), f"{per_step:,} tokens an update and process"
    )


def same_tokenizer(subject: Subject, layout: RunLayout) -> Iterator[Check]:
    """The run's tokenizer is the data's."""
    from bitnet.text.tokenizer import load_tokenizer

    then, now = (
        t.describe()["tokenizer_sha256"] for t in (load_tokenizer(layout.tokenizer), subject.task.tokenizer)
    )
    made = read_json(layout.fingerprint)
    size = made.get("tokenizer_vocab_size")
    ok = (
        then == now and size == subject.task.tokenizer.vocab_size and made.get("tokenizer_sha256", now) == now
    )
    yield DATA(
        "run and data have one tokenizer",
        "the model was trained on other ids than those it is given now",
        source="SHA-256 of both, and of the shards'",
        weight=PROOF,
    ).holds(ok, then[:12], now[:12])


@torch.no_grad()
def frozen_and_evaluated(subject: Subject, layout: RunLayout) -> Iterator[Check]:
    """The frozen set is the one of the start, and the checkpoint still has the loss that was recorded for
    it.
    """
    try:
        frozen = [Batch(**tensors) for tensors in load_frozen_set(layout)]
    except BitnetError as error:
        yield EVALUATION("frozen evaluation set is intact", str(error)).holds(
            False, "damaged", "the SHA-256 of meta/dataset_fingerprint.json"
        )
        return
    now = subject.task.frozen_evaluation()
    same = len(frozen) == len(now) and all(one.equals(other) for one, other in zip(frozen, now, strict=False))
    yield EVALUATION(
        "frozen evaluation set is intact",
        "the run was measured on other rows than its task holds out",
        source="eval/frozen_set.safetensors",
        explained_by=frozenset({"data"}),
    ).holds(same, same, "the task's held-out rows")
    told = [row for row in read_lines(layout.evaluations).rows if row["step"] == subject.step]
    if told:
        found = loss_module.held_out_loss(subject.model, frozen, subject.task.tokenizer)["nats_per_token"]
        gap = abs(found - float(told[-1]["eval_loss"]))
        yield CHECKPOINT(
            "checkpoint reloads to the recorded loss",
            "the weights are not those that were evaluated, or evaluation has changed",
            source="eval/eval_results.jsonl",
            weight=PROOF,
            explained_by=frozenset({"quantization", "evaluation"}),
        ).holds(below(gap, LOSS_GAP), found, f"{told[-1]['eval_loss']:.5f} nats/token, within {LOSS_GAP:g}")


def repeats(subject: Subject, layout: RunLayout, *, reloads: bool) -> Iterator[Check]:
    """The two updates after a checkpoint again: same losses; and the same weights where both checkpoints were
    kept.

    The first one that is kept (of update 1, where the start was), the last, and the last that was followed by
    another.

    reloads: whether the checkpoint has its recorded held-out loss. If it has not, and updates after other
    checkpoints do not repeat either, then it is the model that computed otherwise, and neither the rows nor
    the one file.
    """
    by_step = {row["step"]: row for row in read_lines(layout.scalars).rows}
    steps = [
        step
        for step in layout.checkpoint_steps()
        if step + 1 in by_step and isinstance(by_step[step + 1].get("loss"), float)
    ]
    followed = [step for step in steps if step + 1 in layout.checkpoint_steps()][-1:]
    chosen = sorted({*steps[:1], *steps[-1:], *followed}) if _affordable(subject) else []
    gaps: dict[str, float] = {}
    later: dict[str, float] = {}
    moved: dict[str, float] = {}
    for step in chosen:
        try:
            before = checkpoints.load_checkpoint(layout.checkpoint(step))
        except BitnetError:
            continue
        losses, error = _again(subject, layout, before)
        gaps[f"update {step + 1}"] = abs(losses[0] - by_step[step + 1]["loss"])
        if len(losses) > 1 and isinstance(by_step.get(step + 2, {}).get("loss"), float):
            later[f"update {step + 2}"] = abs(losses[1] - by_step[step + 2]["loss"])
        if error is not None:
            moved[f"update {step + 1}"] = error
    if gaps:
        gap, where = worst(gaps)
        another_model = not reloads and not below(gap, LOSS_GAP)
        yield OPTIMIZER(
            "updates repeat with the recorded loss",
            f"{where} " + (OTHER_MODEL if another_model else OTHER_ROWS),
            suspect="quantization" if another_model else "data",
            source="loss of the update after a checkpoint, on the rows of that step",
            weight=PROOF if another_model else STRONG,
            explained_by=frozenset()
            if another_model
            else frozenset({"quantization", "gradients", "checkpoint"}),
        ).holds(below(gap, LOSS_GAP), gap, f"<= {LOSS_GAP:g} nats from metrics/scalars.jsonl")
    if later:
        yield OPTIMIZER(
            "the update after it repeats too",
            "the update before it moved the weights otherwise than it does now",
        ).below(later, 4 * LOSS_GAP, "nats from metrics/scalars.jsonl")
    if moved:
        error, where = worst(moved)
        yield OPTIMIZER(
            "updates repeat with the recorded weights",
            f"{where} moved the weights otherwise than it does now",
            source="two checkpoints in a row",
            weight=STRONG,
            explained_by=frozenset({"data", "quantization", "gradients", "checkpoint"}),
        ).below(error, 0.05, "relative error of the change")


def _affordable(subject: Subject) -> bool:
    """Whether a whole update of the run's own size takes seconds, not minutes."""
    work = int(subject.training["tokens_per_step"]) * subject.config.total_params
    return subject.full or subject.device.type == "cuda" or work < UPDATE_WORK


def _again(subject: Subject, layout: RunLayout, before: Any) -> tuple[list[float], float | None]:
    """Losses of the next two updates, and how far the first one's change of the weights is from the recorded
    one, where it is known.
    """
    model = subject.new_model(subject.config)
    checkpoints.load_weights(model, before)
    optimizers = subject.new_optimizers(model)
    optimizers.load_state_tensors(before.optimizer)
    losses: list[float] = []
    error: float | None = None
    for report in subject.train(model, optimizers, subject.task.source, start_step=before.step):
        losses.append(report.loss)
        if len(losses) == 2:
            break
        if before.step + 1 in layout.checkpoint_steps():
            error = _moved_otherwise(
                model,
                before,
                checkpoints.load_checkpoint(layout.checkpoint(before.step + 1), optimizer=False),
            )
    return losses, error


def _moved_otherwise(model: torch.nn.Module, before: Any, after: Any) -> float:
    """Distance between the weights now and the recorded ones, in units of the recorded change."""
    difference, size = 0.0, 0.0
    for name, parameter in model.named_parameters():
        change = after.model[name].double() - before.model[name].double()
        difference += float(((parameter.detach().cpu().double() - after.model[name].double()) ** 2).sum())
        size += float((change**2).sum())
    return math.sqrt(difference / size) if size else 0.0 if difference == 0 else math.inf


def probes(layout: RunLayout, step: int, *, finished: bool) -> Iterator[Check]:
    """Codes flip early and settle late; a run that is still going need not have settled."""
    flips = [
        row["flipped_pct"]
        for row in read_lines(layout.quantization).rows
        if row["step"] <= step and isinstance(row.get("flipped_pct"), float)
    ]
    if len(flips) < 1:
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
