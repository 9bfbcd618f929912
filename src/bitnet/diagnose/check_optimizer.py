"""Does an update do what its definition says, at the rates that this step should have? Suspect: optimizer.

Judged on what the optimizers were really given (gradients, rates) and on what the weights really did, against
AdamW and Muon written down once more in float64 (reference_updates.py). The gradients themselves are
check_gradients.py's matter: an optimizer that does the right thing with a wrong gradient passes here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitnet.diagnose import reference, reference_updates
from bitnet.diagnose.finding import Check, Part, Suspect, below, worst
from bitnet.diagnose.subject import PLAIN, Narrow, Subject, Update, copy_of, watch
from bitnet.diagnose.trace import multiplied_by, off

SIZE = 0.02
"""Relative error allowed between the change of a parameter and the reference's: float32 rounding of w + dw is
far below it, except in the very first steps of a long warm-up, where dw is small; MUON_BF16 where the
iteration runs in bfloat16 (CUDA)."""
MUON_BF16 = 0.15
RATES = 1e-9
WALKED = 5_000  # updates whose rates are looked at
SCHEDULE = Part(suspect="optimizer", source="docstring of optim/schedule.py, recomputed")
PRECISION: frozenset[Suspect] = frozenset({"quantization"})
"""Weights stored in few bits cannot move by what an update says."""
OPTIMIZER = Part("optimizer", "recomputed from the settings: warm-up, lines between the corners")
QUANTIZATION = Part("quantization", "codes are a function of the present weights")


def optimizer(subject: Subject, updates: Sequence[Update]) -> Iterator[Check]:
    """All checks of this file. updates: the first two, from the beginning of training."""
    yield from schedule(subject)
    yield from every_schedule(subject)
    done = [update for update in updates if update.report is not None]
    later = later_updates(subject)
    yield from rates_used(subject, [*done, *later])
    yield from changes(subject, done, "first updates")
    if later:
        yield from changes(subject, later, "updates around the stage boundary")
    yield from codes_follow(subject)
    yield from refuses(subject)


def later_updates(subject: Subject) -> list[Update]:
    """The last update of stage 1 and the first of stage 2, where the decay changes."""
    boundary, total = int(subject.training["stage1_end"]), int(subject.training["total_steps"])
    if not 2 < boundary < total:
        return []
    source = Narrow(subject.task.source, 24)
    changes = {
        "batch_size": 1,
        "grad_accumulation_steps": 1,
        "seq_len": min(24, int(subject.training["seq_len"])),
    }
    return watch(subject, copy_of(subject, subject.model), source, 2, start_step=boundary - 1, **changes)


def schedule(subject: Subject) -> Iterator[Check]:
    """The schedule as a function, at every update or evenly over the run, against its definition."""
    training = subject.training
    total, boundary, warmup = (int(training[key]) for key in ("total_steps", "stage1_end", "warmup_steps"))
    edges = {1, 2, warmup, warmup + 1, boundary - 1, boundary, boundary + 1, total - 1, total}
    between = {int(step) for step in np.linspace(1, total, min(total, WALKED))}
    gaps: dict[str, float] = {}
    for step in sorted(step for step in edges | between if 1 <= step <= total):
        lr, wd = reference_updates.rates(training, step)
        used = subject.rates_at(step)
        gaps[f"update {step}"] = max(abs(used.lr - lr), abs(used.wd - wd))
    gap, where = worst(gaps)
    yield OPTIMIZER(
        "schedule as configured", f"at {where} the schedule gives other rates than its settings"
    ).holds(below(gap, RATES + 1e-6 * float(training["peak_lr"])), gap, "rate and decay within 1e-9")


def every_schedule(subject: Subject) -> Iterator[Check]:
    """All kinds of schedule, whichever this run uses, at every update of a short run."""
    gaps: dict[str, float] = {}
    short = {
        "total_steps": 40,
        "warmup_steps": 6,
        "stage1_end": 23,
        "peak_lr": 0.003,
        "stage2_lr": 0.001,
        "final_lr": 0.0001,
    }
    for kind in ("two_stage", "linear", "warm_down", "cosine"):
        for step in range(1, 41):
            used = subject.rates_at(step, **short, schedule=kind)
            lr, wd = reference_updates.rates({**subject.training, **short, "schedule": kind}, step)
            gaps[f"{kind}, update {step}"] = max(abs(used.lr - lr), abs(used.wd - wd))
    yield SCHEDULE("every kind of schedule as defined", "another rate or decay").below(
        gaps, RATES, "difference of rate or decay"
    )


def rates_used(subject: Subject, updates: Sequence[Update]) -> Iterator[Check]:
    """The rates that each update ran with, and those it reported, are those of its own step."""
    gaps: dict[str, float] = {}
    for update in updates:
        assert update.report is not None
        lr, wd = reference_updates.rates(subject.training, update.report.step)
        used = [(update.report.lr, update.report.wd)] + (
            [(update.rates.lr, update.rates.wd)] if update.rates else []
        )
        gaps[f"update {update.report.step}"] = max(max(abs(a - lr), abs(b - wd)) for a, b in used)
    gap, where = worst(gaps)
    yield OPTIMIZER(
        "each update runs at its own rates",
        f"{where} ran at, or reported, other rates: a schedule stepped after the update, or a stale one",
        source="update n uses lr(n) and wd(n); the first is warm-up step 1, never the peak",
    ).holds(
        below(gap, RATES + 1e-6 * float(subject.training["peak_lr"])),
        gap,
        "rate and decay of the same step, within 1e-9",
    )


def changes(subject: Subject, updates: Sequence[Update], which: str) -> Iterator[Check]:
    """The weights moved as the definition says, given these gradients and the rates of these steps."""
    on_gpu = subject.device.type == "cuda"
    muon = muon_rows(subject)
    reference_of = reference_updates.Updater(subject.training, muon)
    errors: dict[str, float] = {}
    still: list[str] = []
    for update in updates:
        assert update.report is not None
        given = {
            name: torch.zeros_like(update.before[name]) if g is None else g
            for name, g in update.gradients.items()
        }
        if not given:
            continue
        wanted = reference_of.changes(
            update.before, given, *reference_updates.rates(subject.training, update.report.step)
        )
        for name, want in wanted.items():
            moved = update.after[name].double() - update.before[name].double()
            rounding = float(torch.linalg.vector_norm(update.before[name].double())) * 6e-8
            allowed = (MUON_BF16 if on_gpu and name in muon else SIZE) + rounding / max(
                float(want.norm()), 1e-300
            )
            errors[f"{name}, update {update.report.step}"] = (
                off(moved, want) / allowed if bool(want.any()) or bool(moved.any()) else 0.0
            )
            if (
                bool(want.any())
                and not bool(moved.any())
                and float(want.abs().max()) > 1e-7 * float(update.before[name].abs().max())
            ):
                still.append(name)
    yield OPTIMIZER(
        f"every parameter moves: {which}",
        "not moved",
        source="definition of an update",
        explained_by=PRECISION,
    ).none(still, "parameters that stay although they have a gradient")
    error, where = worst(errors) if errors else (0.0, "")
    yield OPTIMIZER(
        f"change of weights as defined: {which}",
        f"{where}: size or direction of the change does not follow from gradient, rate, decay and betas",
        source="AdamW arXiv:1711.05101, Muon (Jordan 2024), in float64 on the gradients that were given",
        explained_by=PRECISION,
    ).holds(below(error, 1.0), error * SIZE, f"relative error <= {SIZE:g}")


def refuses(subject: Subject) -> Iterator[Check]:
    """A loss that is not a number changes no weight."""
    model = copy_of(subject, subject.model)
    with torch.no_grad():
        model.final_norm.weight[0] = torch.nan
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    sizes: dict[str, Any] = {
        "batch_size": 1,
        "grad_accumulation_steps": 1,
        "seq_len": min(24, int(subject.training["seq_len"])),
        **PLAIN,
    }
    report = next(
        iter(subject.train(model, subject.new_optimizers(model), Narrow(subject.task.source, 24), **sizes))
    )
    same = all(
        torch.equal(weight.nan_to_num(), before[name].nan_to_num())
        for name, weight in model.named_parameters()
    )
    yield OPTIMIZER(
        "an update that is not finite is refused",
        "one bad batch destroys the weights for good",
        source="the loss of a model with a NaN weight",
    ).holds(
        same and report.refused is not None, report.refused or "applied", "refused, and no weight changed"
    )


def muon_rows(subject: Subject) -> dict[str, tuple[int, ...]]:
    """Logical matrices of every parameter that Muon should move, by the settings."""
    if subject.training["optimizer"] != "muon":
        return {}
    names = [
        name
        for name, weight in subject.model.named_parameters()
        if name.startswith("blocks.") and weight.dim() == 2
    ]
    return {name: reference.matrix_rows(subject.config, name) for name in names}


def codes_follow(subject: Subject) -> Iterator[Check]:
    """After an update the forward pass uses the codes of the new weights, not those that it once computed."""
    if subject.config.weights != "ternary":
        return
    model = copy_of(subject, subject.model)
    optimizers = subject.new_optimizers(model)
    shares: dict[str, float] = {}
    layers = model.bit_linears()
    for layer in layers.values():
        multiplied_by(layer, layer.in_features, layer.weight)
    for parameter in model.parameters():
        parameter.grad = _push(parameter)
    strong = max(float(subject.training["peak_lr"]), 0.01)
    optimizers.step(type(subject.rates_at(1))(lr=strong, wd=0.0))
    for name, layer in layers.items():
        used = multiplied_by(layer, layer.in_features, layer.weight)
        right = reference.effective(
            layer.weight.detach(), reference.matrix_rows(subject.config, name), subject.config
        )
        shares[name] = float((used.sign() != right.sign()).double().mean())
    share, where = worst(shares)
    yield QUANTIZATION(
        "forward pass uses the weights after the update",
        f"{where} still multiplies by codes of earlier weights",
    ).below(share, 1e-3, "share of stale codes")


def _push(parameter: Tensor) -> Tensor:
    """A gradient that pushes every weight towards zero and beyond, so that many codes change."""
    return parameter.detach().sign() + 0.1
