"""The rehearsal: two short runs of the real trainer, one of them stopped and resumed. Suspects: checkpoint,
data, optimizer.

What is saved must be restored: rows, losses, weights, optimizer state, random state, and every line of every
file. Which checkpoints are kept, what their state says, and that the newest is the one that loads, is looked
at in their folders. Not here: how the runs are made (rehearsal.py), runs of the user's (check_run.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from bitnet.diagnose import reference
from bitnet.diagnose.check_run import UPSTREAM, scalars
from bitnet.diagnose.finding import Check, Part, below, worst
from bitnet.diagnose.rehearsal import STOP, Rehearsal
from bitnet.run import checkpoint as checkpoints
from bitnet.run.layout import RunLayout
from bitnet.run.metrics import read_lines

SAVED = Part(
    suspect="checkpoint",
    source="what is saved is restored; tested bit for bit on CPUs",
    explained_by=UPSTREAM - {"optimizer"},
)
TIMES = (
    "step_time_ms",
    "tokens_per_sec",
    "process_mem_gb",
    "gpu_mem_allocated_gb",
    "gpu_mem_reserved_gb",
    "mfu",
)
"""Keys of metric lines that differ from run to run."""
CHECKPOINT = Part(
    "checkpoint",
    "what is saved is restored; tested bit for bit on CPUs",
    explained_by=UPSTREAM - {"optimizer"},
)
OPTIMIZER = Part("optimizer", "optimizer.safetensors", explained_by=frozenset({"quantization", "gradients"}))
DATA = Part("data", "update n reads rows (n-1)R .. nR-1")


def rehearsed(rehearsal: Rehearsal) -> Iterator[Check]:
    """Save, stop, resume: the same as never having stopped; and the files of a run say what happened."""
    whole, parts = rehearsal.whole, rehearsal.parts
    training = rehearsal.settings.to_json()["training"]
    total = rehearsal.settings.train.total_steps
    yield from _same_rows(rehearsal.whole_rows, rehearsal.parts_rows, total)
    yield from scalars(parts, training, resumed=False)
    losses = [[row.get("loss") for row in read_lines(layout.scalars).rows] for layout in (whole, parts)]
    gap = max(
        (abs(a - b) for a, b in zip(*losses, strict=False) if a is not None and b is not None),
        default=math.inf,
    )
    yield CHECKPOINT(
        "a resumed run has the same losses", "something that decides the loss was not restored"
    ).holds(
        len(losses[0]) == len(losses[1]) and below(gap, 1e-5),
        gap,
        "<= 1e-5 nats between a run in one go and one resumed",
    )
    ends = [checkpoints.load_checkpoint(layout.checkpoint(total)) for layout in (whole, parts)]
    errors = {
        name: float((first[name].double() - second[name].double()).abs().max())
        for first, second in ((ends[0].model, ends[1].model), (ends[0].optimizer, ends[1].optimizer))
        for name in first
        if name in second
    }
    keys = (
        ends[0].model.keys() == ends[1].model.keys() and ends[0].optimizer.keys() == ends[1].optimizer.keys()
    )
    error, where = worst(errors)
    yield CHECKPOINT(
        "a resumed run has the same weights and optimizer state",
        f"{where}: weights, optimizer state or random state come back changed",
    ).holds(keys and below(error, 1e-6), error, "<= 1e-6 after a stop and a resume")
    held = {
        f"{key}.{name}"
        for name in ends[0].model
        for key in (("momentum_buffer",) if _by_muon(name, rehearsal) else ("exp_avg", "exp_avg_sq"))
    }
    missing = sorted(held - ends[0].optimizer.keys())
    yield OPTIMIZER("the optimizer remembers every parameter", "no state").none(
        missing, "parameters without optimizer state"
    )
    yield from same_lines(whole, parts)
    yield from averages(parts)
    if rehearsal.settings.model.weights == "ternary":
        yield from probed(whole, total)
    yield from states(rehearsal)
    yield from handed_on(rehearsal)
    yield from kept(rehearsal)


def _by_muon(name: str, rehearsal: Rehearsal) -> bool:
    return rehearsal.settings.train.optimizer == "muon" and name.startswith("blocks.") and "norm" not in name


def _same_rows(whole: Sequence[Sequence[int]], parts: Sequence[Sequence[int]], total: int) -> Iterator[Check]:
    per_update = len(whole[0]) if whole else 0
    wanted = [list(range(n * per_update, (n + 1) * per_update)) for n in range(total)]
    first = [list(rows) for rows in whole] == wanted
    second = [list(rows) for rows in parts] == wanted
    yield DATA(
        "a resumed run reads on where it stopped",
        "after a resume the data begins elsewhere: rows are skipped or read again",
    ).holds(
        first and second,
        {"in one go": first, "resumed": second},
        f"rows of updates 1..{total}, each once, also after a stop at {STOP}",
    )


def same_lines(whole: RunLayout, parts: RunLayout) -> Iterator[Check]:
    """Every line of every file is the same, times aside: metrics, probes, evaluations, samples."""
    errors: dict[str, float] = {}
    for one, other in zip(whole.line_files(), parts.line_files(), strict=True):
        mine, theirs = (read_lines(path).rows for path in (one, other))
        errors[one.name] = (
            math.inf if len(mine) != len(theirs) else max(map(_apart, mine, theirs), default=0.0)
        )
    yield SAVED(
        "a resumed run writes the same lines", "says something else after a resume, or has other lines"
    ).below(errors, 1e-4, "relative difference of any figure")


def averages(layout: RunLayout) -> Iterator[Check]:
    """The training loss beside a held-out one is the mean of the updates up to there, at most a hundred, and
    the gap their difference.
    """
    losses = {
        row["step"]: row["loss"]
        for row in read_lines(layout.scalars).rows
        if isinstance(row.get("loss"), float)
    }
    gaps: dict[str, float] = {}
    for row in read_lines(layout.evaluations).rows:
        before = [loss for step, loss in sorted(losses.items()) if step <= row["step"]][-100:]
        mean = sum(before) / max(len(before), 1)
        gaps[f"update {row['step']}"] = max(
            abs(row["train_loss"] - mean), abs(row["train_eval_gap"] - (mean - row["eval_loss"]))
        )
    yield SAVED(
        "evaluations stand beside the mean training loss",
        "train_loss is another mean",
        suspect="evaluation",
        source="docs/run-directory.md",
    ).below(gaps, 1e-6, "nats")


def probed(layout: RunLayout, total: int) -> Iterator[Check]:
    """The shares and scales of the last probe are those of the last weights, counted once more."""
    rows = [row for row in read_lines(layout.quantization).rows if row["step"] == total]
    weights = checkpoints.load_checkpoint(layout.checkpoint(total), optimizer=False).model
    names = {
        "attention.qkv_proj": "attn_qkv",
        "attention.out_proj": "attn_out",
        "feedforward.gate_up": "ffn_gate_up",
        "feedforward.down": "ffn_down",
    }
    gaps: dict[str, float] = {}
    for name, weight in weights.items():
        block, layer, *rest = name.split(".")
        kind = names.get(".".join(rest).removesuffix(".weight"))
        if block == "blocks" and kind and rows:
            scales = rows[-1][f"L{layer}_{kind}_scale"]
            heights = _heights(weight, len(scales), weights[f"blocks.{layer}.attention.out_proj.weight"])
            codes, scale = reference.ternary(weight, heights)
            told = [rows[-1][f"L{layer}_{kind}_{share}_pct"] for share in ("neg1", "zero", "pos1")]
            gaps[f"shares of {name}"] = max(
                abs(a - float((codes == v).double().mean())) for a, v in zip(told, (-1, 0, 1), strict=True)
            )
            starts = [sum(heights[:index]) for index in range(len(heights))]
            gaps[f"scales of {name}"] = max(
                abs(a / float(scale[b]) - 1) for a, b in zip(scales, starts, strict=True)
            )
    if gaps:
        yield SAVED(
            "probes count the codes",
            "is another in metrics/quantization.jsonl",
            suspect="evaluation",
            source="independent float64 computation",
            explained_by=UPSTREAM,
        ).below(gaps, 1e-3, "difference")


def _heights(weight: torch.Tensor, parts: int, out_proj: torch.Tensor) -> tuple[int, ...]:
    """Rows of each logical matrix: halves of gate and up; queries as wide as the model, keys and values the
    rest.
    """
    height = weight.shape[0]
    if parts == 3:
        query = out_proj.shape[1]
        return query, (height - query) // 2, (height - query) // 2
    return tuple([height // parts] * parts)


def _apart(one: Any, other: Any) -> float:
    """The largest difference of two values as JSON has them; infinite where they differ in kind, keys or
    text.
    """
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        if one.keys() != other.keys():
            return math.inf
        return max((_apart(one[key], other[key]) for key in one if key not in TIMES), default=0.0)
    if isinstance(one, list) and isinstance(other, list):
        return math.inf if len(one) != len(other) else max(map(_apart, one, other), default=0.0)
    if isinstance(one, bool | str | None) or isinstance(other, bool | str | None):
        return 0.0 if one == other else math.inf
    return abs(float(one) - float(other)) / max(1.0, abs(float(one)))


def states(rehearsal: Rehearsal) -> Iterator[Check]:
    """state.json of the last checkpoints: counted right, random states equal although random numbers were
    drawn on the way.
    """
    total = rehearsal.settings.train.total_steps
    told = [
        checkpoints.load_checkpoint(layout.checkpoint(total), optimizer=False).state
        for layout in (rehearsal.whole, rehearsal.parts)
    ]
    yield SAVED("random states are restored", "random numbers after a resume are other ones").holds(
        told[0].get("rng_states") == told[1].get("rng_states"),
        told[0].get("rng_states") == told[1].get("rng_states"),
        "the same after a stop and a resume",
    )
    right = {
        "step": total,
        "tokens_seen": total * rehearsal.settings.train.tokens_per_step,
        "loss": read_lines(rehearsal.whole.scalars).rows[-1].get("loss"),
    }
    for key, name in (
        ("lr_scheduler_state", ("peak_lr", "stage2_lr", "final_lr")),
        ("wd_scheduler_state", ("stage1_wd", "stage2_wd")),
    ):
        right[key] = {"current_step": total, **{one: getattr(rehearsal.settings.train, one) for one in name}}
    wrong = [key for key, value in right.items() if told[0].get(key) != value]
    yield SAVED(
        "a checkpoint's state is that of its update",
        "state.json says something else",
        source="the seeds' keys, recomputed",
    ).holds(not wrong, wrong, ", ".join(right))


def handed_on(rehearsal: Rehearsal) -> Iterator[Check]:
    """The last weights of a run are those that a run begun from it starts with, and those that a user
    loads.
    """
    total = rehearsal.settings.train.total_steps
    last = checkpoints.load_checkpoint(rehearsal.whole.checkpoint(total), optimizer=False).model
    first = checkpoints.load_checkpoint(rehearsal.begun.checkpoint(0), optimizer=False).model
    other = [
        name for name, weight in last.items() if name not in first or not torch.equal(first[name], weight)
    ]
    yield SAVED(
        "a run begins with the weights it is begun from",
        "fine-tuning begins with other weights",
        source="train.start_from",
    ).none(other, "parameters that differ")
    mine = rehearsal.loaded
    other = [
        name
        for name, weight in last.items()
        if name not in mine or not torch.equal(mine[name].detach().cpu(), weight)
    ]
    other += sorted(mine.keys() ^ last.keys())  # a tied head that came apart, for one
    yield SAVED("a user loads the newest weights", f"bitnet.load gives others: {other[:2]}").holds(
        not other and rehearsal.loaded_step == total,
        [rehearsal.loaded_step, len(other)],
        f"[{total}, 0]: step, and parameters that differ",
    )


def kept(rehearsal: Rehearsal) -> Iterator[Check]:
    """Which checkpoints are kept, and which of them loads."""
    total, boundary = rehearsal.settings.train.total_steps, rehearsal.settings.train.boundary
    promised = {0, boundary - 1, boundary, total}
    there = [set(layout.checkpoint_steps()) for layout in (rehearsal.whole, rehearsal.parts)]
    missing = [sorted(promised - steps) for steps in there]
    yield SAVED(
        "the promised checkpoints are there",
        "a checkpoint that is promised was not written, or deleted",
        source="docs/run-directory.md",
    ).holds(not any(missing), missing, f"{sorted(promised)}, at least")
    loaded = [
        checkpoints.newest_good(layout, lambda problem: None, optimizer=False)
        for layout in (rehearsal.whole, rehearsal.parts)
    ]
    found = [one.step if one is not None else None for one in loaded]
    yield SAVED("the newest checkpoint is the one that loads", "an older one is resumed from").equal(
        found, [total] * 2
    )
    yield retention()
    yield damage_is_seen(rehearsal)


def retention() -> Check:
    """The last few, every so many, and the mandatory ones stay."""
    steps = [0, 10, 20, 100, 110, 120, 130, 200, 210]
    found = checkpoints.retained_steps(steps, mandatory={0, 20}, keep_last=3, keep_every=100)
    return SAVED(
        "retention keeps what it should",
        "checkpoints are deleted that should stay, or kept for ever",
        source="docs/run-directory.md",
    ).equal(sorted(found), [0, 20, 100, 130, 200, 210])


def damage_is_seen(rehearsal: Rehearsal) -> Check:
    """A bit flipped in the newest checkpoint: it is not loaded, the one before it is."""
    layout, total = rehearsal.parts, rehearsal.settings.train.total_steps
    path = layout.checkpoint(total) / checkpoints.MODEL
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)
    found = checkpoints.newest_good(layout, lambda problem: None, optimizer=False)
    step = found.step if found is not None else None
    before = max(step for step in layout.checkpoint_steps() if step != total)
    return SAVED(
        "a damaged checkpoint is passed over",
        "damage is not noticed, or nothing is loaded any more",
        source="SHA-256 of the manifest",
    ).equal(step, before)
