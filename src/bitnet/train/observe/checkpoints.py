"""When training writes a checkpoint, and what is in it. Not here: its files (run/checkpoint.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from bitnet.data.stream import Skip
from bitnet.errors import NotFiniteError
from bitnet.nn.transformer import BitNetTransformer
from bitnet.optim.loss_scale import LossScale
from bitnet.optim.optimizer import Optimizers
from bitnet.run.checkpoint import Checkpoint, prune, save_checkpoint
from bitnet.run.layout import RunLayout
from bitnet.run.metrics import LineWriters
from bitnet.run.random_state import random_states
from bitnet.train.config import TrainConfig
from bitnet.train.loop import StepReport
from bitnet.train.observe.guard import Diverged, Guard
from bitnet.train.observe.status import demand_run


class Checkpoints:
    """Saves checkpoints at the mandatory steps, at every checkpoint_every and on demand; deletes old ones."""

    every = 1

    def __init__(
        self,
        layout: RunLayout,
        model: BitNetTransformer,
        optimizers: Optimizers,
        config: TrainConfig,
        writers: LineWriters,
        memory: Callable[[], dict[str, Tensor]],
        guard: Guard,
        skips: Sequence[Skip],
        scaling: LossScale | None = None,
    ) -> None:
        """memory: what other observers need again after a resume; skips: training data that was left out."""
        self.layout, self.model, self.optimizers, self.config = layout, model, optimizers, config
        self.writers, self.memory, self.guard, self.skips = writers, memory, guard, skips
        self.scaling = scaling
        self.named: set[int] = set()
        """Steps that a message has named to the user; they stay while this process trains."""

    def __call__(self, report: StepReport) -> None:
        if self.config.has_checkpoint(report.step):
            try:
                self.save(report.step, report.tokens_seen, report.loss)
            except NotFiniteError:
                raise Diverged("nan_inf_weights", self.guard.refused, report) from None

    def save(self, step: int, tokens_seen: int, loss: float | None) -> None:
        """Write a checkpoint of this step. Raises NotFiniteError for weights that are not finite."""
        demand_run(self.layout)
        # A resume cuts the metrics back to this checkpoint, so the lines up to it must be on disk before it.
        for writer in self.writers.all():
            writer.sync()

        model: dict[str, Tensor] = dict(self.model.named_parameters())
        state = {**training_state(self.config, step, tokens_seen, loss), **self._for_the_resume()}
        optimizer = self.optimizers.state_tensors()
        save_checkpoint(self.layout, Checkpoint(step, model, optimizer, state, self.memory()))

        # Nothing is deleted when a signal asks for a checkpoint, or while updates are being refused: a run
        # goes back to the same checkpoint whether it was interrupted or not.
        if self.config.has_checkpoint(step) and not self.guard.refused:
            prune(
                self.layout,
                mandatory=self.config.mandatory_checkpoints(),
                keep_last=self.config.keep_last,
                keep_every=self.config.keep_every,
                named=self.named,
            )

    def _for_the_resume(self) -> dict[str, Any]:
        """What state.json holds beside the seeds' keys, for a resume to continue exactly here."""
        root = self.layout.root
        return {
            "refused_in_a_row": len(self.guard.refused),
            "skipped_data": [list(skip) for skip in self.skips],
            "loss_scale": None if self.scaling is None else self.scaling.state(),
            "lines": {str(one.path.relative_to(root)): one.extent() for one in self.writers.all()},
        }


def training_state(config: TrainConfig, step: int, tokens_seen: int, loss: float | None) -> dict[str, Any]:
    """state.json with the seeds' keys. The schedules are functions of the step; their part is for readers."""
    return {
        "step": step,
        "tokens_seen": tokens_seen,
        "loss": loss,
        "model_state_dict": "model.safetensors",
        "optimizer_state_dict": "optimizer.safetensors",
        "lr_scheduler_state": {
            "current_step": step,
            "peak_lr": config.peak_lr,
            "stage2_lr": config.stage2_lr,
            "final_lr": config.final_lr,
        },
        "wd_scheduler_state": {
            "current_step": step,
            "stage1_wd": config.stage1_wd,
            "stage2_wd": config.stage2_wd,
        },
        "rng_states": random_states(),
        "config": "meta/config.json",
    }
