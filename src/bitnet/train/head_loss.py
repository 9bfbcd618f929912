"""Cross-entropy of the next token from the last hidden states, without a whole matrix of logits.

    logits = H @ E^T        H: (N, C) hidden states of N tokens        E: (V, C) output head
    loss   = sum over scored tokens of -log softmax(logits)[target]

Plainly, the logits (N, V), their log-probabilities and two gradients of that size are held at once: 1 GB for
2,048 tokens and 32,000 entries. Here some tokens at a time pass through the head, and since the gradient of
their logits is known as soon as their loss is,

    G = softmax(logits) - onehot(target)        dL/dH = G @ E        dL/dE += G^T @ H

it is written over the logits and multiplied at once, in the forward pass; the backward pass only multiplies
by the gradient of the loss. What stays is dL/dH and dL/dE, which the update needs anyway. The method is that
of Liger Kernel (Hsu et al., arXiv:2410.10989, section 3.2) and Cut Your Losses (Wijmans et al.,
arXiv:2411.09009); the pass over the logits is bitnet.kernels.passes.cross_entropy.

Products have the format that autocast gives them, and dL/dE is summed in float32. Not here: the plain form
(objective.py), which remains for what needs logits (unlikelihood, preferences) and for fp16, where a gradient
must be multiplied by the loss scale before it is rounded.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bitnet.kernels import passes

PART_BYTES = 1 << 26
"""Of the logits made at a time. Each part reads and writes dL/dE once, so that parts must not be small."""


def head_loss(hidden: Tensor, weight: Tensor, targets: Tensor, scored: Tensor) -> Tensor:
    """Cross-entropy summed over scored targets, in nats: float32 ().

    hidden: (..., C); weight: (V, C); targets: int64 (...); scored: bool (...).
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    loss: Tensor = _HeadLoss.apply(hidden.flatten(0, -2), weight, targets.flatten(), scored.flatten(), dtype)  # type: ignore[no-untyped-call]
    return loss


class _HeadLoss(torch.autograd.Function):
    """The loss, with its gradients made beside it."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, scored: Tensor, dtype: torch.dtype
    ) -> Tensor:
        states, head = hidden.detach().to(dtype), weight.detach().to(dtype)  # (N, C), (V, C)
        rows = max(1, PART_BYTES // (len(head) * dtype.itemsize))
        learns = any(ctx.needs_input_grad)
        if learns:
            grad_states, grad_head = torch.empty_like(states), torch.empty_like(weight)

        loss = torch.zeros((), device=hidden.device)
        for start in range(0, len(states), rows):
            part = slice(start, start + rows)
            logits = states[part] @ head.t()  # (rows, V), and its gradient from the next line on
            loss += passes.cross_entropy(logits, targets[part], scored[part]).sum()
            if learns:
                torch.mm(logits, head, out=grad_states[part])
                _add_product(grad_head, logits.t(), states[part], first=start == 0)

        if learns:
            # Not saved as tensors for the backward pass: it multiplies them where they are.
            ctx.gradients, ctx.dtype = (grad_states, grad_head), hidden.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_states, grad_head = ctx.gradients
        ctx.gradients = None  # a second backward pass would multiply a second time
        return grad_states.to(ctx.dtype).mul_(grad), grad_head.mul_(grad), None, None, None


def _add_product(total: Tensor, left: Tensor, right: Tensor, *, first: bool) -> None:
    """total += left @ right, or total = it for the first, where the product may have another format."""
    if left.dtype == total.dtype:
        total.addmm_(left, right, beta=0 if first else 1)
    elif first:
        total.copy_(left @ right)
    else:
        total += left @ right
