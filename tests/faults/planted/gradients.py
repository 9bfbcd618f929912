"""Faults of the backward pass and of the loss that it starts from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from bitnet.kernels import passes
from bitnet.nn import bitlinear, packed_linear, transformer
from bitnet.optim.optimizer import Optimizers
from bitnet.train import loop, objective
from planted.fault import PACKED, fault


def _float_forward(weight_of: Callable[[Any, Any], Any]) -> None:
    def forward(self: Any, x: Any) -> Any:
        quantized = bitlinear.ternarize(self.weight, self.rows).dequantized()
        return F.linear(
            bitlinear.straight_through(x, bitlinear.quantize_activations(x).dequantized()),
            weight_of(self.weight, quantized),
        )

    bitlinear.BitLinear.forward = forward  # type: ignore[method-assign]


@fault("no straight-through", "gradients", "reaches every parameter")
def _() -> None:
    _float_forward(lambda weight, quantized: quantized)


@fault("gradient with the wrong sign", "gradients", "straight-through reference")
def _() -> None:
    _float_forward(lambda weight, quantized: -weight + (quantized + weight).detach())


@fault("straight-through only near zero", "gradients", "straight-through reference")
def _() -> None:
    def masked(weight: Any, quantized: Any) -> Any:
        near = (weight.abs() < weight.abs().mean()).float()
        return weight * near + (quantized - weight * near).detach()

    _float_forward(masked)


@fault("detached feed-forward", "gradients", "reaches every parameter")
def _() -> None:
    original = transformer.FeedForward.forward
    transformer.FeedForward.forward = lambda self, x: original(self, x.detach())  # type: ignore[method-assign]


@fault(
    "int8 input gradient forgets the scale of the weights", "gradients", "straight-through reference", PACKED
)
def _() -> None:
    original = passes.quantize_gradient
    passes.quantize_gradient = lambda grad, scale, *others: original(
        grad, torch.full_like(scale, packed_linear.GRADIENT_FACTOR), *others
    )


@fault("packed copies are kept after an update", "gradients quantization", "weights after the update", PACKED)
def _() -> None:
    original = bitlinear.BitLinear._kept

    def kept(self: Any, form: str, make: Callable[[], Any]) -> Any:
        same = self._cached is not None and self._cached[0][0] == form
        return self._cached[1] if same else original(self, form, make)

    bitlinear.BitLinear._kept = kept  # type: ignore[method-assign]


@fault("the transposed copy is of another matrix", "gradients", "straight-through reference", PACKED)
def _() -> None:
    original = passes.pack_weight
    passes.pack_weight = lambda weight, *others: original(weight, *others)._replace(
        packed_t=original(weight.flip(0), *others).packed_t
    )


@fault("accumulation not divided", "gradients optimizer", "length of the mean")
def _() -> None:
    original = objective.summed_loss
    objective.summed_loss = lambda logits, batch: (
        2 * original(logits, batch) - original(logits, batch).detach()
    )


@fault("gradients never forgotten", "gradients optimizer", "gradient")
def _() -> None:
    Optimizers.zero_grad = lambda self: None  # type: ignore[method-assign]


@fault("loss on padding too", "gradients data", "training loss")
def _() -> None:
    original = objective.summed_loss
    objective.summed_loss = lambda logits, batch: original(
        logits, batch._replace(loss_mask=torch.ones_like(batch.loss_mask))
    )


@fault("unlikelihood of the target too", "gradients", "penalty")
def _() -> None:
    original = objective.recent_tokens
    objective.recent_tokens = lambda ids, targets, last: original(ids, torch.full_like(targets, -1), last)


@fault("unlikelihood for ever as in stage 1", "gradients", "penalty")
def _() -> None:
    original = loop.objective_of
    loop.objective_of = lambda config, step: original(config, 1)


@fault("preference for the rejected answer", "gradients", "loss")
def _() -> None:
    original = objective.margins
    objective.margins = lambda logits, batch: -original(logits, batch)


@fault("preference forgets the reference", "gradients", "loss")
def _() -> None:
    original = objective.margins
    objective.margins = lambda logits, batch: original(
        logits, batch._replace(reference=torch.zeros_like(batch.reference))
    )


@fault("each micro-batch a mean of its own", "gradients", "gradient")
def _() -> None:
    original = objective.NextToken.terms

    def terms(self: Any, logits: Any, batch: Any) -> Any:
        return original(self, logits, batch) / batch.loss_mask.sum().clamp(min=1) * batch.loss_mask.numel()

    objective.NextToken.terms = terms  # type: ignore[method-assign]
