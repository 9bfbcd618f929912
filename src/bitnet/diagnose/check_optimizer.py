"""Does an update do what its definition says, at the rates that this step should have? Suspect: optimizer.

Judged on what the optimizers were really given (gradients, rates) and on what the weights really did, against
AdamW and Muon written down once more in float64 (reference_updates.py). The gradients themselves are
check_gradients.py's matter: an optimizer that does the right thing with a wrong gradient passes here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from bitnet.diagnose import reference
from bitnet.diagnose.finding import Check, Part
from bitnet.diagnose.reference_updates import Updater, rates
from bitnet.diagnose.subject import Subject, copy_of
from bitnet.diagnose.trace import multiplied_by, off, weights_of
from bitnet.diagnose.watch import Narrow, Update, small_steps, watch
from bitnet.optim.schedule import Rates

SIZE = 0.02
"""Relative error allowed between the change of a parameter and the reference's: float32 rounding of w + dw is
far below it, except in the very first steps of a long warm-up, where dw is small; MUON_BF16 where the
iteration runs in bfloat16 (CUDA)."""
MUON_BF16 = 0.15
RATES, ROUNDING = 1e-9, 6e-8
NARROW = 24  # tokens of a row
WALKED = 5_000  # updates whose rates are looked at
SHORT = {
    "total_steps": 40,
    "warmup_steps": 6,
    "stage1_end": 23,
    "peak_lr": 0.003,
    "stage2_lr": 0.001,
    "final_lr": 0.0001,
}
"""A run on which every kind of schedule is looked at."""
SCHEDULE = Part("optimizer", "docstring of optim/schedule.py, recomputed; update n uses lr(n) and wd(n)")
CHANGE = Part(
    "optimizer",
    "AdamW arXiv:1711.05101, Muon (Jordan 2024), in float64 on the gradients that were given",
    explained_by=frozenset({"quantization"}),  # weights stored in few bits cannot move as an update says
)
REFUSAL = Part("optimizer", "the loss of a model with a NaN weight")
CODES = Part("quantization", "codes are a function of the present weights")


def optimizer(subject: Subject, updates: Sequence[Update]) -> Iterator[Check]:
    """All checks of this file. updates: the first two, from the beginning of training."""
    yield from schedule(subject)
    later = later_updates(subject)
    yield from rates_used(subject, [*updates, *later])
    yield from changes(subject, updates, "first updates")
    if later:
        yield from changes(subject, later, "updates around the stage boundary")
    yield from codes_follow(subject)
    yield refuses(subject)


def later_updates(subject: Subject) -> list[Update]:
    """The last update of stage 1 and the first of stage 2, where the decay changes."""
    boundary, total = int(subject.training["stage1_end"]), int(subject.training["total_steps"])
    if not 2 < boundary < total:
        return []
    source, model = Narrow(subject.task.source, NARROW), copy_of(subject, subject.model)
    return watch(subject, model, source, 2, start_step=boundary - 1, **small_steps(subject, 1, NARROW))


def gap(used: Rates, training: Mapping[str, Any], step: int) -> float:
    """How far rate and decay are from those that the settings give this step."""
    lr, wd = rates(training, step)
    return max(abs(used.lr - lr), abs(used.wd - wd))


def schedule(subject: Subject) -> Iterator[Check]:
    """The schedule at every update or evenly over the run; and every kind of schedule, whichever is used, at
    every update of a short run.
    """
    training = subject.training
    total, boundary, warmup = (int(training[key]) for key in ("total_steps", "stage1_end", "warmup_steps"))
    edges = {1, 2, warmup, warmup + 1, boundary - 1, boundary, boundary + 1, total - 1, total}
    between = {int(step) for step in np.linspace(1, total, min(total, WALKED))}
    steps = [step for step in sorted(edges | between) if 1 <= step <= total]
    gaps = {f"update {step}": gap(subject.rates_at(step), training, step) for step in steps}
    yield SCHEDULE("schedule as configured", "the schedule gives other rates than its settings").below(
        gaps, RATES + 1e-6 * float(training["peak_lr"]), "difference of rate or decay"
    )

    gaps = {}
    for kind in ("two_stage", "linear", "warm_down", "cosine"):
        settings: dict[str, Any] = {**SHORT, "schedule": kind}
        for step in range(1, 41):
            used = subject.rates_at(step, **settings)
            gaps[f"{kind}, update {step}"] = gap(used, {**training, **settings}, step)
    yield SCHEDULE("every kind of schedule as defined", "rate or decay is not that of the definition").below(
        gaps, RATES, "difference of rate or decay"
    )


def rates_used(subject: Subject, updates: Sequence[Update]) -> Iterator[Check]:
    """The rates that each update ran with, and those it reported, are those of its own step."""
    gaps: dict[str, float] = {}
    for update in updates:
        report = update.report
        used = [Rates(report.lr, report.wd), *([update.rates] if update.rates else [])]
        gaps[f"update {report.step}"] = max(gap(one, subject.training, report.step) for one in used)
    other = "ran at, or reported, other rates: a schedule stepped after the update, or a stale one"
    yield SCHEDULE("each update runs at its own rates", other).below(
        gaps, RATES + 1e-6 * float(subject.training["peak_lr"]), "difference of rate or decay"
    )


def changes(subject: Subject, updates: Sequence[Update], which: str) -> Iterator[Check]:
    """The weights moved as the definition says, given these gradients and the rates of these steps."""
    muon = muon_rows(subject)
    definition = Updater(subject.training, muon)
    errors: dict[str, float] = {}
    still: list[str] = []
    for update in (update for update in updates if update.gradients):
        before, step = update.before, update.report.step
        given = {
            name: torch.zeros_like(before[name]) if gradient is None else gradient
            for name, gradient in update.gradients.items()
        }
        wanted = definition.changes(before, given, *rates(subject.training, step))
        for name, want in wanted.items():
            moved = update.after[name].double() - before[name].double()
            allowed = MUON_BF16 if subject.device.type == "cuda" and name in muon else SIZE
            # float32 rounds w + dw, which counts where dw is small
            allowed += ROUNDING * float(before[name].double().norm()) / max(float(want.norm()), 1e-300)
            errors[f"{name}, update {step}"] = SIZE * off(moved, want) / allowed
            counts = float(want.abs().max()) > 1e-7 * float(before[name].abs().max())
            if counts and bool(want.any()) and not bool(moved.any()):
                still.append(name)
    yield CHANGE(f"every parameter moves: {which}", "not moved").none(
        still, "parameters that stay although they have a gradient"
    )
    other = "size or direction of the change does not follow from gradient, rate, decay and betas"
    yield CHANGE(f"change of weights as defined: {which}", other).below(errors or {"": 0.0}, SIZE)


def refuses(subject: Subject) -> Check:
    """A loss that is not a number changes no weight."""
    model = copy_of(subject, subject.model)
    with torch.no_grad():
        model.final_norm.weight[0] = torch.nan
    before = {name: weight.clone() for name, weight in weights_of(model).items()}
    source = Narrow(subject.task.source, NARROW)
    (update,) = watch(subject, model, source, 1, **small_steps(subject, 1, NARROW))
    after = weights_of(model)
    same = all(torch.equal(after[name].nan_to_num(), weight.nan_to_num()) for name, weight in before.items())
    refused = update.report.refused
    other = "one bad batch destroys the weights for good"
    return REFUSAL("an update that is not finite is refused", other).holds(
        same and refused is not None, refused or "applied", "refused, and no weight changed"
    )


def muon_rows(subject: Subject) -> dict[str, tuple[int, ...]]:
    """Logical matrices of every parameter that Muon should move, by the settings."""
    if subject.training["optimizer"] != "muon":
        return {}
    return {
        name: reference.matrix_rows(subject.config, name)
        for name, weight in weights_of(subject.model).items()
        if name.startswith("blocks.") and weight.dim() == 2
    }


def codes_follow(subject: Subject) -> Iterator[Check]:
    """After an update the forward pass uses the codes of the new weights, not those that it once computed."""
    if subject.config.weights != "ternary":
        return
    model = copy_of(subject, subject.model)
    layers = model.bit_linears()
    for layer in layers.values():
        multiplied_by(layer, layer.in_features, layer.weight)  # so that codes are computed, and may be kept
    for parameter in model.parameters():
        # pushes every weight towards zero and beyond, so that many codes change
        parameter.grad = parameter.detach().sign() + 0.1
    strong = max(float(subject.training["peak_lr"]), 0.01)
    subject.new_optimizers(model).step(Rates(strong, 0.0))

    stale: dict[str, float] = {}
    for name, layer in layers.items():
        used = multiplied_by(layer, layer.in_features, layer.weight)
        rows = reference.matrix_rows(subject.config, name)
        right = reference.effective(layer.weight.detach(), rows, subject.config)
        stale[name] = float((used.sign() != right.sign()).double().mean())
    other = "still multiplies by codes of earlier weights"
    yield CODES("forward pass uses the weights after the update", other).below(
        stale, 1e-3, "share of stale codes"
    )
