"""The optimizers of a model as one object: rates in, one update out, state as named tensors.

AdamW (arXiv:1711.05101) moves everything, or Muon moves the ternary matrices and AdamW the rest (embeddings,
norms, head). Weight decay acts on matrices, never on norm weights.

Not here: when the rates change (schedule.py) and whether an update may happen at all (update.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bitnet.errors import CheckpointError
from bitnet.nn.transformer import BitNetTransformer
from bitnet.optim.adamw import AdamW, ParameterGroups
from bitnet.optim.muon import Muon
from bitnet.optim.schedule import Rates

OptimizerKind = Literal["adamw", "muon"]
MuonPrecision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Settings that do not change with the step."""

    kind: OptimizerKind
    adam_beta1: float
    adam_beta2: float
    muon_momentum: float
    muon_lr_ratio: float
    """Muon's rate divided by the schedule's. Its weight decay is the schedule's divided by this, so that rate
    times decay is the same for all weights."""
    muon_precision: MuonPrecision = "auto"


def muon_in_bf16(precision: MuonPrecision, device_type: str) -> bool:
    """Whether Muon iterates in bfloat16. auto: on CUDA alone, since a small model learned more slowly so
    (docs/log.md).
    """
    return device_type == "cuda" if precision == "auto" else precision == "bf16"


class Optimizers:
    """AdamW, with Muon beside it where asked for."""

    def __init__(self, model: BitNetTransformer, config: OptimizerConfig) -> None:
        self.config = config
        self.names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
        layers = model.bit_linears().values() if config.kind == "muon" else ()
        matrices = {layer.weight: layer.rows for layer in layers}
        rest = [parameter for parameter in self.names if parameter not in matrices]
        self.adamw = AdamW(
            [
                {"params": [p for p in rest if p.dim() > 1], "decays": True},
                {"params": [p for p in rest if p.dim() <= 1], "decays": False},
            ],
            betas=(config.adam_beta1, config.adam_beta2),
        )
        in_bf16 = muon_in_bf16(config.muon_precision, model.device.type)
        self.muon = Muon(matrices.items(), momentum=config.muon_momentum, bf16=in_bf16) if matrices else None

    def step(self, rates: Rates) -> None:
        """One update of every parameter at these rates; gradients are dropped afterwards."""
        for group in self.adamw.param_groups:
            group["lr"], group["weight_decay"] = rates.lr, rates.wd if group["decays"] else 0.0
        self.adamw.step()
        # The fused kernel writes to a tensor without raising its version, by which ternary layers notice that
        # their codes are out of date.
        torch.autograd.graph.increment_version(
            [p for group in self.adamw.param_groups for p in group["params"]]
        )

        if self.muon is not None:
            for group in self.muon.param_groups:
                group["lr"] = rates.lr * self.config.muon_lr_ratio
                group["weight_decay"] = rates.wd / self.config.muon_lr_ratio
            self.muon.step()
        self.zero_grad()

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in self.names:
            parameter.grad = None

    def state_tensors(self) -> dict[str, Tensor]:
        """Everything to restore, by name: `exp_avg.blocks.0.attention.qkv_proj.weight` and so on."""
        tensors = {}
        for optimizer in self.parts():
            for parameter, state in optimizer.state.items():
                for key, value in state.items():
                    tensors[f"{key}.{self.names[parameter]}"] = value
        return tensors

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Replace all state by what `state_tensors` gave. Raises CheckpointError for another model's."""
        for optimizer in self.parts():
            optimizer.state.clear()

        by_name = {name: parameter for parameter, name in self.names.items()}
        owner = {
            parameter: optimizer
            for optimizer in self.parts()
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        for full_name, value in tensors.items():
            key, _, name = full_name.partition(".")
            parameter = by_name.get(name)
            if parameter is None or not (value.numel() == 1 or value.shape == parameter.shape):
                raise CheckpointError(
                    f"the optimizer state has {full_name[:80]!r}, which is not of this model; use the run's "
                    "own checkpoint"
                )
            owner[parameter].state[parameter][key] = value.to(parameter.device).clone()

    def parts(self) -> list[ParameterGroups]:
        """AdamW, and Muon where there is one."""
        return [self.adamw] if self.muon is None else [self.adamw, self.muon]
