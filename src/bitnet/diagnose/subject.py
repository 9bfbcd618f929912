"""What is examined: an experiment with its settings, and a fresh model of it or a run's checkpoint.

A `Subject` makes models and optimizers, reads rows and runs updates with the functions that training itself
calls, so that whatever is broken in them is broken here too. Not here: how a subject is opened
(open_subject.py), and how its updates are watched (watch.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from bitnet.data.stream import Batch, RowSource
from bitnet.nn.config import BitNetConfig
from bitnet.nn.transformer import BitNetTransformer
from bitnet.optim.loss_scale import LossScale
from bitnet.optim.optimizer import Optimizers
from bitnet.optim.schedule import Rates
from bitnet.run.layout import RunLayout
from bitnet.text.tokenizer import Tokenizer
from bitnet.train import loop
from bitnet.train.config import RunConfig, TrainConfig
from bitnet.train.device import Machine, choose_machine
from bitnet.train.experiment import Criterion, Experiment, Task, Variant
from bitnet.train.loop import StepReport
from bitnet.train.start import seed_everything
from bitnet.trained_model import TrainedModel


def new_model(
    shape: BitNetConfig, train: TrainConfig, device: torch.device, before: Mapping[str, Any] | None = None
) -> BitNetTransformer:
    """A model as training makes it: seeded, and with the products that its settings choose on this device.

    before: conditions that a run was trained under; `auto` means those.
    """
    machine = choose_machine(train, device, before)
    seed_everything(train.seed)
    model = BitNetTransformer(shape).to(device)
    full = "full" in (shape.weights, shape.activations)
    if full:
        model.set_product("float", machine.gradient_dtype)
    else:
        formats = machine.gradient_dtype, machine.input_gradient, machine.weight_dtype
        model.set_product(machine.product, *formats, fused=machine.fused_blocks)
    return model


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One experiment with a fresh model, or one run with its checkpoint. `changes` of the methods are
    settings of training to replace.
    """

    name: str
    experiment: Experiment
    variant: str
    settings: RunConfig
    task: Task
    model: BitNetTransformer
    """The fresh model, or the one of the run's checkpoint."""
    layout: RunLayout | None = None
    step: int = 0
    """Updates behind `model`."""
    step_named: bool = True
    """Whether the user named this checkpoint; otherwise it should be the newest good one."""
    damaged: Sequence[str] = ()
    """What is wrong with checkpoints that were skipped."""
    full: bool = False
    """Whether the slow checks are wanted too."""
    before: Mapping[str, Any] = field(default_factory=dict)
    """Conditions that the run was trained under last (run/sessions.py); empty for a fresh model."""

    @property
    def config(self) -> BitNetConfig:
        """The model's shape."""
        return self.settings.model

    @cached_property
    def training(self) -> Mapping[str, Any]:
        """The section `training` of meta/config.json: what was asked for, in the seeds' keys."""
        section: dict[str, Any] = self.settings.to_json()["training"]
        return section

    @cached_property
    def data(self) -> Mapping[str, Any]:
        """The section `data`."""
        section: dict[str, Any] = self.settings.to_json()["data"]
        return section

    @property
    def declared(self) -> Variant:
        """The variant as the experiment declares it, which a run may have changed."""
        return self.experiment.variants[self.variant]

    @property
    def criteria(self) -> Sequence[Criterion]:
        """When the variant counts as a success."""
        return self.declared.criteria

    @property
    def planned_tokens(self) -> int:
        """Tokens that the variant plans."""
        return self.declared.config.train.total_tokens

    @property
    def fresh(self) -> bool:
        """Whether there is no run, only an experiment."""
        return self.layout is None

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.model.device

    @property
    def bf16(self) -> bool:
        """Whether training computes products in bf16 or fp16."""
        machine = self._machine(self.settings.train)
        return machine.bf16 or machine.fp16

    def _machine(self, train: TrainConfig) -> Machine:
        return choose_machine(train, self.device, self.before, self.model.config)

    def new_model(self, shape: BitNetConfig) -> BitNetTransformer:
        """A fresh model of this shape."""
        return new_model(shape, self.settings.train, self.device, self.before)

    def new_optimizers(self, model: BitNetTransformer, **changes: Any) -> Optimizers:
        """Fresh optimizers of a model, to be compared with their definition. On a CPU, Muon iterates in
        float32 whatever the run asks for, since in bfloat16 it is further off than some faults are.
        """
        changed = dataclasses.replace(self.settings.train, **{"muon_precision": "auto", **changes})
        return Optimizers(model, changed.optimizer_config())

    def run_optimizers(self, model: BitNetTransformer) -> Optimizers:
        """Fresh optimizers in the run's own format of Muon, to repeat its updates."""
        return Optimizers(model, self.settings.train.optimizer_config())

    def rates_at(self, step: int, **changes: Any) -> Rates:
        """Learning rate and weight decay of an update."""
        return dataclasses.replace(self.settings.train, **changes).rates().rates_at(step)

    def read_update(self, source: RowSource, step: int) -> Sequence[Batch]:
        """The micro-batches that the loop reads from a source at an update."""
        return loop.read_batches(source, self.settings.train, step, self.device)

    def train(
        self,
        model: BitNetTransformer,
        optimizers: Optimizers,
        source: RowSource,
        *,
        start_step: int = 0,
        num_steps: int | None = None,
        **changes: Any,
    ) -> Iterator[StepReport]:
        """The training loop. num_steps: the same recipe in so many updates."""
        train = self.settings.train if num_steps is None else self.settings.train.with_total_steps(num_steps)
        chosen = dataclasses.replace(train, **changes)
        machine = self._machine(chosen)
        return loop.train_steps(
            model,
            model,
            source,
            optimizers,
            chosen,
            start_step=start_step,
            bf16=machine.bf16,
            scaling=LossScale(machine.device) if machine.fp16 else None,
            fused_loss=machine.fused_loss,
        )

    def complete(self, tokenizer: Tokenizer, prompt: str, count: int) -> str:
        """What a user of the model is shown after a prompt, in at most `count` tokens."""
        trained = TrainedModel(self.layout or RunLayout(Path()), self.step, self.model, tokenizer)
        return trained.complete(prompt, max_new_tokens=count, stop=None)


def copy_of(subject: Subject, model: BitNetTransformer) -> BitNetTransformer:
    """A model of the same configuration, made as training makes it, with these weights."""
    twin = subject.new_model(model.config)
    own = dict(twin.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in own and own[name].shape == parameter.shape:
                own[name].copy_(parameter)
    return twin
