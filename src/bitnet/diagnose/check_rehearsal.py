"""The rehearsal: short runs of the real trainer, one of them stopped and resumed. Suspects: checkpoint, data,
optimizer.

What is saved must be restored: rows, losses, weights, optimizer state, random state, and every line of every
file. The folders of the runs show which checkpoints are kept, what their state says, and whether the newest
is the one that loads. Not here: how the runs are made (rehearsal.py), and runs of the user (check_run.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from bitnet.diagnose import reference
from bitnet.diagnose.check_checkpoints import different, newest_step, stored
from bitnet.diagnose.check_run import UPSTREAM, scalars
from bitnet.diagnose.finding import Check, Part
from bitnet.diagnose.rehearsal import STOP, Rehearsal
from bitnet.run import checkpoint as checkpoints
from bitnet.run.layout import RunLayout
from bitnet.run.metrics import read_lines

SAVED = Part(
    "checkpoint",
    "what is saved is restored; tested bit for bit on CPUs",
    explained_by=UPSTREAM - {"optimizer"},
)
OPTIMIZER = Part("optimizer", "optimizer.safetensors", explained_by={"quantization", "gradients"})
DATA = Part("data", "update n reads rows (n-1)R .. nR-1")
TIMES = "step_time_ms tokens_per_sec process_mem_gb gpu_mem_allocated_gb gpu_mem_reserved_gb mfu".split()
"""Keys of metric lines that differ from run to run."""
PROBED = {
    "attention.qkv_proj": "attn_qkv",
    "attention.out_proj": "attn_out",
    "feedforward.gate_up": "ffn_gate_up",
    "feedforward.down": "ffn_down",
}
"""What metrics/quantization.jsonl calls the ternary layers of a block."""


def rehearsed(rehearsal: Rehearsal) -> Iterator[Check]:
    """All checks of this file."""
    yield same_rows(rehearsal)
    yield from scalars(rehearsal.parts, rehearsal.settings, resumed=False)
    yield same_losses(rehearsal)
    yield from same_ends(rehearsal)
    yield same_lines(rehearsal.whole, rehearsal.parts)
    yield averages(rehearsal.parts)
    if rehearsal.settings.model.weights == "ternary":
        yield from probed(rehearsal.whole, rehearsal.settings.train.total_steps)
    yield from states(rehearsal)
    yield from handed_on(rehearsal)
    yield from kept(rehearsal)
    yield retention()
    yield damage_is_seen(rehearsal)


def same_rows(rehearsal: Rehearsal) -> Check:
    """Every update reads its own rows, also after a stop."""
    total = rehearsal.settings.train.total_steps
    per_update = len(rehearsal.whole_rows[0]) if rehearsal.whole_rows else 0
    wanted = [list(range(n * per_update, (n + 1) * per_update)) for n in range(total)]
    found = {"in one go": rehearsal.whole_rows == wanted, "resumed": rehearsal.parts_rows == wanted}
    return DATA(
        "a resumed run reads on where it stopped",
        "after a resume the data begins elsewhere: rows are skipped or read again",
    ).holds(all(found.values()), found, f"rows of updates 1..{total}, each once, also after a stop at {STOP}")


def same_losses(rehearsal: Rehearsal) -> Check:
    """The losses of both runs, update by update."""
    whole, parts = (
        [row.get("loss") for row in read_lines(layout.scalars).rows]
        for layout in (rehearsal.whole, rehearsal.parts)
    )
    gaps = [abs(a - b) for a, b in zip(whole, parts, strict=False) if a is not None and b is not None]
    gap = max(gaps, default=math.inf) if len(whole) == len(parts) else math.inf
    return SAVED(
        "a resumed run has the same losses", "something that decides the loss was not restored"
    ).below(gap, 1e-5, "nats between a run in one go and one resumed")


def same_ends(rehearsal: Rehearsal) -> Iterator[Check]:
    """The last checkpoints of both runs: weights and optimizer state, of every parameter."""
    train = rehearsal.settings.train
    whole, parts = (
        checkpoints.load_checkpoint(layout.checkpoint(train.total_steps))
        for layout in (rehearsal.whole, rehearsal.parts)
    )
    errors = {**_differences(whole.model, parts.model), **_differences(whole.optimizer, parts.optimizer)}
    yield SAVED(
        "a resumed run has the same weights and optimizer state",
        "weights, optimizer state or random state come back changed",
    ).below(errors, 1e-6, "difference after a stop and a resume")

    def held(name: str) -> tuple[str, ...]:
        by_muon = train.optimizer == "muon" and name.startswith("blocks.") and "norm" not in name
        return ("momentum_buffer",) if by_muon else ("exp_avg", "exp_avg_sq")

    wanted = {f"{key}.{name}" for name in whole.model for key in held(name)}
    yield OPTIMIZER("the optimizer remembers every parameter", "no state").none(
        sorted(wanted - whole.optimizer.keys()), "parameters without optimizer state"
    )


def _differences(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> dict[str, float]:
    """The largest difference of each tensor; infinite where only one has it."""
    shared = one.keys() & other.keys()
    apart = dict.fromkeys(one.keys() ^ other.keys(), math.inf)
    return {name: float((one[name].double() - other[name].double()).abs().max()) for name in shared} | apart


def same_lines(whole: RunLayout, parts: RunLayout) -> Check:
    """Every line of every file is the same, times aside: metrics, probes, evaluations, samples."""
    errors: dict[str, float] = {}
    for one, other in zip(whole.line_files(), parts.line_files(), strict=True):
        errors[one.name] = apart(read_lines(one).rows, read_lines(other).rows)
    return SAVED(
        "a resumed run writes the same lines", "says something else after a resume, or has other lines"
    ).below(errors, 1e-4, "relative difference of any figure")


def apart(one: Any, other: Any) -> float:
    """The largest relative difference of two values as JSON has them; infinite where they differ in kind,
    keys, length or text.
    """
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        if one.keys() != other.keys():
            return math.inf
        return max((apart(one[key], other[key]) for key in one if key not in TIMES), default=0.0)
    if isinstance(one, list) and isinstance(other, list):
        return math.inf if len(one) != len(other) else max(map(apart, one, other), default=0.0)
    if isinstance(one, bool | str | None) or isinstance(other, bool | str | None):
        return 0.0 if one == other else math.inf
    return abs(float(one) - float(other)) / max(1.0, abs(float(one)))


def averages(layout: RunLayout) -> Check:
    """The training loss beside a held-out one is the mean of the updates up to there, at most a hundred, and
    the gap is their difference.
    """
    rows = read_lines(layout.scalars).rows
    losses = {row["step"]: row["loss"] for row in rows if isinstance(row.get("loss"), float)}
    gaps: dict[str, float] = {}
    for row in read_lines(layout.evaluations).rows:
        before = [loss for step, loss in sorted(losses.items()) if step <= row["step"]][-100:]
        mean = sum(before) / max(len(before), 1)
        gaps[f"update {row['step']}"] = max(
            abs(row["train_loss"] - mean), abs(row["train_eval_gap"] - (mean - row["eval_loss"]))
        )
    return SAVED(
        "evaluations stand beside the mean training loss",
        "train_loss is another mean",
        suspect="evaluation",
        source="docs/run-directory.md",
    ).below(gaps, 1e-6, "nats")


def probed(layout: RunLayout, total: int) -> Iterator[Check]:
    """The shares and scales of the last probe are those of the last weights, counted once more."""
    rows = [row for row in read_lines(layout.quantization).rows if row["step"] == total]
    if not rows:
        return
    weights = stored(layout, total).model
    gaps: dict[str, float] = {}
    for name, weight in weights.items():
        block, layer, *rest = name.split(".")
        kind = PROBED.get(".".join(rest).removesuffix(".weight"))
        if block == "blocks" and kind:
            width = weights[f"blocks.{layer}.attention.out_proj.weight"].shape[1]
            shares, scales = probe_gaps(weight, rows[-1], f"L{layer}_{kind}", width)
            gaps |= {f"shares of {name}": shares, f"scales of {name}": scales}
    yield SAVED(
        "probes count the codes",
        "is another in metrics/quantization.jsonl",
        suspect="evaluation",
        source="independent float64 computation",
        explained_by=UPSTREAM,
    ).below(gaps, 1e-3, "difference")


def probe_gaps(weight: Tensor, row: Mapping[str, Any], key: str, width: int) -> tuple[float, float]:
    """By how much a probe's shares of codes, and its scales, differ from those of a weight.

    width: of all queries of the model. A weight is one logical matrix for each of the probe's scales: halves
    of gate and up; of q, k and v the queries have `width` rows, and keys and values the rest.
    """
    told, height = row[f"{key}_scale"], weight.shape[0]
    heights = [height // len(told)] * len(told)
    if len(told) == 3:
        heights = [width, (height - width) // 2, (height - width) // 2]

    codes, scale = reference.ternary(weight, tuple(heights))
    shares = [float((codes == code).double().mean()) for code in (-1, 0, 1)]
    listed = [row[f"{key}_{name}_pct"] for name in ("neg1", "zero", "pos1")]
    first_rows = [sum(heights[:index]) for index in range(len(heights))]
    return (
        max(abs(a - b) for a, b in zip(listed, shares, strict=True)),
        max(abs(a / float(scale[first]) - 1) for a, first in zip(told, first_rows, strict=True)),
    )


def states(rehearsal: Rehearsal) -> Iterator[Check]:
    """state.json of the last checkpoints: counted right, and random states equal although random numbers were
    drawn on the way.
    """
    train = rehearsal.settings.train
    total = train.total_steps
    whole, parts = (stored(layout, total).state for layout in (rehearsal.whole, rehearsal.parts))
    same = whole.get("rng_states") == parts.get("rng_states")
    yield SAVED("random states are restored", "random numbers after a resume are other ones").holds(
        same, same, "the same after a stop and a resume"
    )

    def scheduler(*names: str) -> dict[str, Any]:
        return {"current_step": total, **{name: getattr(train, name) for name in names}}

    right = {
        "step": total,
        "tokens_seen": total * train.tokens_per_step,
        "loss": read_lines(rehearsal.whole.scalars).rows[-1].get("loss"),
        "lr_scheduler_state": scheduler("peak_lr", "stage2_lr", "final_lr"),
        "wd_scheduler_state": scheduler("stage1_wd", "stage2_wd"),
    }
    wrong = [key for key, value in right.items() if whole.get(key) != value]
    yield SAVED(
        "a checkpoint's state is that of its update",
        "state.json says something else",
        source="the seeds' keys, recomputed",
    ).holds(not wrong, wrong, ", ".join(right))


def handed_on(rehearsal: Rehearsal) -> Iterator[Check]:
    """A run that is begun from another starts with its last weights, and a user loads the same."""
    total = rehearsal.settings.train.total_steps
    last = stored(rehearsal.whole, total).model
    yield SAVED(
        "a run begins with the weights it is begun from",
        "fine-tuning begins with other weights",
        source="train.start_from",
    ).none(different(last, stored(rehearsal.begun, 0).model), "parameters that differ")

    other = different(last, rehearsal.loaded)  # among them a tied head that came apart
    yield SAVED("a user loads the newest weights", f"bitnet.load gives others: {other[:2]}").holds(
        not other and rehearsal.loaded_step == total,
        [rehearsal.loaded_step, len(other)],
        f"[{total}, 0]: step, and parameters that differ",
    )


def kept(rehearsal: Rehearsal) -> Iterator[Check]:
    """Which checkpoints are kept, and which of them loads."""
    total, boundary = rehearsal.settings.train.total_steps, rehearsal.settings.train.boundary
    both = (rehearsal.whole, rehearsal.parts)
    promised = {0, boundary - 1, boundary, total}
    missing = [sorted(promised.difference(layout.checkpoint_steps())) for layout in both]
    yield SAVED(
        "the promised checkpoints are there",
        "a checkpoint that is promised was not written, or deleted",
        source="docs/run-directory.md",
    ).holds(not any(missing), missing, f"{sorted(promised)}, at least")

    yield SAVED("the newest checkpoint is the one that loads", "an older one is resumed from").equal(
        [newest_step(layout) for layout in both], [total] * 2
    )


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
    """A bit flipped in the newest checkpoint: it is not loaded, and the one before it is."""
    layout, total = rehearsal.parts, rehearsal.settings.train.total_steps
    path = layout.checkpoint(total) / checkpoints.MODEL
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)
    before = max(step for step in layout.checkpoint_steps() if step != total)
    return SAVED(
        "a damaged checkpoint is passed over",
        "damage is not noticed, or nothing is loaded any more",
        source="SHA-256 of the manifest",
    ).equal(newest_step(layout), before)
