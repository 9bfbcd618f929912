"""What training minimises: the next token, or a preference between two answers.

Next token: cross-entropy over the scored targets, in nats.

Preference: direct preference optimisation (Rafailov et al., arXiv:2305.18290, equation 7). Rows come in pairs, the chosen answer
and then the rejected one to the same prompt. With log p the summed log-probability of a row's scored targets under the model,
and log p0 the same under the weights that training began with,

    loss = -log sigmoid(beta * ((log p(chosen) - log p0(chosen)) - (log p(rejected) - log p0(rejected))))

which is ln 2 before the first update. The rows carry log p0 (`Batch.reference`).

An update's loss is the mean over its cases, however micro-batches split them; `loss_reduction: sum` takes the gradient of the sum
instead, as the 2B4T report does for fine-tuning (arXiv:2504.12285, section 3.2). AdamW and Muon undo a constant factor of the
gradient; what changes is that the gradient's norm is then above `grad_clip_norm` nearly always, so that updates count alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import torch.nn.functional as F
from torch import Tensor

from bitnet.data.stream import Batch

ObjectiveKind = Literal["next_token", "preference"]
Reduction = Literal["mean", "sum"]


class Objective(Protocol):
    """A loss that is summed over cases."""

    def cases(self, batches: Sequence[Batch]) -> int:
        """How many cases the loss of these batches is summed over."""
        ...

    def summed(self, logits: Tensor, batch: Batch) -> Tensor:
        """Loss summed over the cases of a batch, in nats. logits: (B, T, V). Returns ()."""
        ...


class NextToken:
    """Cross-entropy; a case is a scored target."""

    def cases(self, batches: Sequence[Batch]) -> int:
        """Scored targets."""
        return sum(int(batch.loss_mask.sum()) for batch in batches)

    def summed(self, logits: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy summed over scored targets."""
        return summed_loss(logits, batch)


class Preference:
    """Direct preference optimisation; a case is a pair of rows."""

    def __init__(self, beta: float) -> None:
        self.beta = beta

    def cases(self, batches: Sequence[Batch]) -> int:
        """Pairs."""
        return sum(len(batch.input_ids) for batch in batches) // 2

    def summed(self, logits: Tensor, batch: Batch) -> Tensor:
        """Loss summed over pairs."""
        return -F.logsigmoid(self.beta * margins(logits, batch)).sum()


def objective_of(kind: ObjectiveKind, beta: float) -> Objective:
    """The objective of a configuration."""
    return NextToken() if kind == "next_token" else Preference(beta)


def summed_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy summed over scored targets, in nats. logits: (B, T, V). Returns ()."""
    return _losses(logits, batch).sum()


def row_log_probabilities(logits: Tensor, batch: Batch) -> Tensor:
    """Log-probability of each row's scored targets, summed, in nats. logits: (B, T, V). Returns (B,)."""
    return -_losses(logits, batch).view(batch.targets.shape).sum(dim=1)


def _losses(logits: Tensor, batch: Batch) -> Tensor:
    losses = F.cross_entropy(logits.float().flatten(0, 1), batch.targets.flatten(), reduction="none")  # (B*T,)
    return losses * batch.loss_mask.flatten()


def margins(logits: Tensor, batch: Batch) -> Tensor:
    """How much more a pair's chosen answer gained over the reference than its rejected one, in nats. Returns (B / 2,)."""
    assert batch.reference is not None, "rows of a preference carry log p0"
    gained = row_log_probabilities(logits, batch) - batch.reference  # (B,)
    return gained[0::2] - gained[1::2]
