"""Faults of the update: its rates, its decay, its clipping and its averages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bitnet.optim import muon
from bitnet.optim.optimizer import Optimizers
from bitnet.optim.schedule import Schedule
from bitnet.train import loop
from planted.fault import ADAMW, by_settings, fault, on_run
from planted.runs import rewrite_scalars, small_run


def _rates(change: Callable[[Any, int, Any], Any]) -> None:
    original = Schedule.rates_at
    Schedule.rates_at = lambda self, step: change(self, step, original)  # type: ignore[method-assign]


@fault("rate ten times too high", "optimizer", "schedule")
def _() -> None:
    _rates(lambda self, step, of: of(self, step)._replace(lr=10 * of(self, step).lr))


@fault("rate zero", "optimizer", "schedule")
def _() -> None:
    _rates(lambda self, step, of: of(self, step)._replace(lr=0.0))


@fault("schedule stepped after the update", "optimizer", "rates")
def _() -> None:
    original = loop.apply_update
    late: list[Any] = []

    def update(model: Any, optimizers: Any, rates: Any, **rest: Any) -> Any:
        late.append(rates)
        return original(model, optimizers, late[-2] if len(late) > 1 else rates._replace(lr=0.003), **rest)

    loop.apply_update = update


@fault("weight decay never switched off", "optimizer", "schedule", ADAMW)
def _() -> None:
    _rates(lambda self, step, of: of(self, step)._replace(wd=self.stage1_wd))


@fault("clipping at 1e-6", "optimizer gradients", "clipping")
def _() -> None:
    original = loop.apply_update
    loop.apply_update = lambda *words, clip_norm, **rest: original(*words, clip_norm=1e-6, **rest)


@fault("optimizer misses parameters", "optimizer", "every parameter moves")
def _() -> None:
    original = Optimizers.__init__

    def made(self: Any, *words: Any, **options: Any) -> None:
        original(self, *words, **options)
        self.adamw.param_groups[0]["params"].clear()

    Optimizers.__init__ = made  # type: ignore[method-assign]


@fault("other betas", "optimizer", "change of weights", ADAMW)
def _() -> None:
    original = Optimizers.__init__

    def made(self: Any, *words: Any, **options: Any) -> None:
        original(self, *words, **options)
        for group in self.adamw.param_groups:
            group["betas"] = (0.5, 0.5)

    Optimizers.__init__ = made  # type: ignore[method-assign]


@fault("decay on norms", "optimizer", "change of weights", ADAMW)
def _() -> None:
    original = Optimizers.step

    def step(self: Any, rates: Any) -> None:
        with torch.no_grad():
            for parameter in self.names:
                if parameter.dim() == 1:
                    parameter.mul_(1 - 30 * rates.lr * rates.wd)
        original(self, rates)

    Optimizers.step = step  # type: ignore[method-assign]


@fault("Muon without orthogonalisation", "optimizer", "change of weights")
def _() -> None:
    muon.orthogonalize = lambda matrices: matrices / matrices.norm(dim=(-2, -1), keepdim=True)


@on_run("a run with its rates in the log changed", "optimizer", "recorded rates")
def _(folder: Path) -> list[str]:
    words = small_run(folder)
    rewrite_scalars(folder, lambda row: {**row, "lr": row["lr"] * (1 if row["step"] < 30 else 3)})
    return words


@fault("decay switched off one update late", "optimizer", "schedule", ADAMW)
def _() -> None:
    _rates(
        lambda self, step, of: of(self, step)._replace(
            wd=self.stage1_wd if step <= self.stage1_end + 1 else self.stage2_wd
        )
    )


@fault("rate off between the corners", "optimizer", "schedule", ADAMW)
def _() -> None:
    _rates(
        lambda self, step, of: of(self, step)._replace(
            lr=of(self, step).lr * (1.02 if step % 97 == 13 else 1.0)
        )
    )


@fault("each gradient clipped by itself", "optimizer gradients", "clipping")
def _() -> None:
    original = torch.nn.utils.clip_grad_norm_

    def each(parameters: Any, limit: float) -> Any:
        kept = list(parameters)
        norm = torch.stack([p.grad.norm() for p in kept if p.grad is not None]).norm()
        for parameter in kept:
            original([parameter], limit)
        return norm

    torch.nn.utils.clip_grad_norm_ = each  # type: ignore[assignment]


@fault("decay through the gradient", "optimizer gradients", "change of weights")
def _() -> None:
    original = Optimizers.step

    def step(self: Any, rates: Any) -> None:
        for parameter in self.names:
            if parameter.dim() > 1 and parameter.grad is not None:
                parameter.grad = parameter.grad + rates.wd * parameter.detach()
        original(self, rates._replace(wd=0.0))

    Optimizers.step = step  # type: ignore[method-assign]


@fault("a cosine that ends too late", "optimizer", "schedule")
def _() -> None:
    original = Schedule._lr
    Schedule._lr = lambda self, step: original(
        self, step - 1 if self.kind == "cosine" and step > self.warmup_steps + 1 else step
    )  # type: ignore[method-assign]


by_settings("final rate above the peak", "optimizer", "rates fall", "--train.final-lr 0.02", base=ADAMW)
by_settings(
    "stage 2 begins at the last update", "optimizer", "boundary", "--train.stage1-end 24400", base=ADAMW
)
by_settings("momentum of 0.3", "optimizer", "momentum", "--train.muon-momentum 0.3")
by_settings("decay of one in ten million", "optimizer", "decay acts", "--train.stage1-wd 1e-7", base=ADAMW)
by_settings(
    "weight decay on by the settings", "optimizer", "decay", "--train.stage1-wd 0.1 --train.stage2-wd 0.1"
)
by_settings(
    "peak rate ten times too high by the settings",
    "optimizer",
    "peak learning rate",
    "--train.peak-lr 0.015",
    base=ADAMW,
)
