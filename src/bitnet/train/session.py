"""What one training process works with, as one value for all that begins, resumes and observes a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from bitnet.data.stream import Batch
from bitnet.nn.transformer import BitNetTransformer
from bitnet.optim.loss_scale import LossScale
from bitnet.optim.optimizer import Optimizers
from bitnet.run.eval_set import load_frozen_set
from bitnet.run.layout import RunLayout
from bitnet.run.provenance import provenance
from bitnet.train.compiled import Paths, Say, choose_paths
from bitnet.train.config import RunConfig
from bitnet.train.device import Machine
from bitnet.train.experiment import Task
from bitnet.train.observe.trackers import TrackerName

Resume = Literal["auto", "never", "must"]


@dataclass(frozen=True, kw_only=True)
class StartOptions:
    """Where a run goes and how it is begun: all that is not part of its configuration."""

    runs_dir: Path
    run_id: str | None = None
    resume: Resume = "auto"
    device: torch.device
    reserved_ids: frozenset[str] = frozenset()
    """Names that a run must not have (those of experiments)."""
    progress_to_stderr: bool = False
    trackers: Sequence[TrackerName] = ()
    """Where every metric row is shown besides the run directory."""


@dataclass(frozen=True)
class Session:
    """A run, its task and configuration, and the model with its optimizers on this machine."""

    layout: RunLayout
    task: Task
    config: RunConfig
    machine: Machine
    model: BitNetTransformer
    optimizers: Optimizers
    options: StartOptions
    say: Say
    scaling: LossScale | None = None
    """What the loss is multiplied by, for fp16."""
    before: Mapping[str, Any] = field(default_factory=dict)
    """Conditions of the run's last session (run/sessions.py); empty for a new run."""

    @cached_property
    def paths(self) -> Paths:
        """The form of the model that trains, tried on real rows when it is first asked for.

        Ask for it only once the model has the weights that training goes on from.
        """
        return choose_paths(
            self.model, self.machine, self.config.train, self.task.source, self.say, self.before
        )

    def eval_set(self) -> list[Batch]:
        """The held-out batches that this run is measured on, as they were written when it began."""
        return [Batch(**tensors) for tensors in load_frozen_set(self.layout)]

    def facts(self) -> dict[str, Any]:
        """What decides a result beside the configuration: code, versions, device, threads, number formats."""
        return provenance(
            self.layout.run_id,
            self.config.train.seed,
            device=str(self.machine.device),
            product=self.paths.product,
            input_gradient=self.paths.input_gradient,
            weight_gradient=self.paths.weight_gradient,
            gradient_dtype=str(self.machine.gradient_dtype).removeprefix("torch."),
            compiled=self.paths.compiled,
            fused_loss=self.paths.fused_loss,
            fused_blocks=self.paths.fused_blocks,
            precision_timed=None if self.machine.timed is None else self.machine.timed.facts(),
        )
