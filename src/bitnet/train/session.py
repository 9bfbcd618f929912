"""What one training process works with, passed as one value to everything that begins, resumes and observes a
run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from bitnet.nn.transformer import BitNetTransformer
from bitnet.optim.loss_scale import LossScale
from bitnet.optim.optimizer import Optimizers
from bitnet.run.layout import RunLayout
from bitnet.train.choose import StartOptions
from bitnet.train.compiled import Paths, choose_paths
from bitnet.train.config import RunConfig
from bitnet.train.device import Machine
from bitnet.train.experiment import Task

Say = Callable[[str], None]


@dataclass(frozen=True)
class Session:
    """Everything one training process works with."""

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

    @cached_property
    def paths(self) -> Paths:
        """The form of the model that trains, tried when first asked for: with the weights that training
        begins or continues with.
        """
        return choose_paths(self.model, self.machine, self.config.train, self.task.source, self.say)
