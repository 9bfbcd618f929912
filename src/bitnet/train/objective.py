"""What training minimises: the next token, or a preference between two answers.

Next token: cross-entropy over the scored targets, in nats. Token-level unlikelihood (Welleck et al.,
arXiv:1908.04319, section 5.1) can be minimised beside it, against loops in greedy text: with C the distinct
tokens among the last `unlikelihood_tokens` that the position has read, the next one left out,

    penalty = unlikelihood * -sum over c in C of log(1 - p(c))

so that recent tokens become less likely. It is part of the gradient and is reported as the update's
`penalty`; the reported loss stays the cross-entropy, which can be compared with the one on held-out text.

Preference: direct preference optimisation (Rafailov et al., arXiv:2305.18290, equation 7). Rows come in
pairs, the chosen answer and then the rejected one to the same prompt. With log p the summed log-probability
of a row's scored targets under the model, and log p0 the same under the weights that training began with,

    loss = -log sigmoid(beta * ((log p(chosen) - log p0(chosen)) - (log p(rejected) - log p0(rejected))))

which is ln 2 before the first update. The rows carry log p0 (`Batch.reference`).

An update's loss is the mean over its cases, however micro-batches split them; `loss_reduction: sum` takes the
gradient of the sum instead, as the 2B4T report does for fine-tuning (arXiv:2504.12285, section 3.2). AdamW
and Muon undo a constant factor of the gradient. What the sum changes is that the gradient's norm is nearly
always above `grad_clip_norm`, so that all updates get the same weight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from bitnet.data.stream import Batch
from bitnet.train.head_loss import head_loss

if TYPE_CHECKING:
    from bitnet.train.config import TrainConfig

ObjectiveKind = Literal["next_token", "preference"]
Reduction = Literal["mean", "sum"]
CERTAIN = 1 - 1e-6
"""The largest probability that unlikelihood computes with, so that it stays finite (13.8 nats)."""


class Objective(Protocol):
    """What is minimised, summed over cases."""

    needs_logits: bool
    """Whether the terms are made of more than the cross-entropy of each scored target."""

    def cases(self, batches: Sequence[Batch]) -> int:
        """How many cases the terms of these batches are summed over."""
        ...

    def terms(self, logits: Tensor, batch: Batch) -> Tensor:
        """Loss and penalty, each summed over a batch's cases, in nats. logits: (B, T, V). Returns (2,)."""
        ...


class NextToken:
    """Cross-entropy, and unlikelihood of recent tokens where asked for; a case is a scored target."""

    def __init__(self, unlikelihood: float = 0.0, unlikelihood_tokens: int = 1) -> None:
        self.unlikelihood, self.unlikelihood_tokens = unlikelihood, unlikelihood_tokens
        self.needs_logits = bool(unlikelihood)

    def cases(self, batches: Sequence[Batch]) -> int:
        """Scored targets."""
        return sum(int(batch.loss_mask.sum()) for batch in batches)

    def terms(self, logits: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy and penalty summed over scored targets."""
        loss = summed_loss(logits, batch)
        if not self.unlikelihood:
            return torch.stack([loss, torch.zeros_like(loss)])
        return torch.stack(
            [loss, self.unlikelihood * summed_unlikelihood(logits, batch, self.unlikelihood_tokens)]
        )


class Preference:
    """Direct preference optimisation; a case is a pair of rows."""

    needs_logits = True

    def __init__(self, beta: float) -> None:
        self.beta = beta

    def cases(self, batches: Sequence[Batch]) -> int:
        """Pairs."""
        return sum(len(batch.input_ids) for batch in batches) // 2

    def terms(self, logits: Tensor, batch: Batch) -> Tensor:
        """Loss summed over pairs, and a penalty of 0."""
        loss = -F.logsigmoid(self.beta * margins(logits, batch)).sum()
        return torch.stack([loss, torch.zeros_like(loss)])


def objective_of(config: TrainConfig, step: int) -> Objective:
    """The objective of an update."""
    if config.objective == "preference":
        return Preference(config.preference_beta)
    weight = config.stage1_unlikelihood if step <= config.boundary else config.stage2_unlikelihood
    return NextToken(weight, config.unlikelihood_tokens)


def terms_of(
    objective: Objective, forward: Callable[..., Tensor], batch: Batch, head: Tensor | None = None
) -> Tensor:
    """Loss and penalty, each summed over a batch's cases, in nats. Returns (2,).

    forward: the model or its compiled form. head: (V, C), weights of the output head, whose product is then
    made together with the loss (head_loss.py) where the objective allows it; None: all logits are made first.
    """
    if head is None or objective.needs_logits:
        return objective.terms(forward(batch.input_ids, **batch.context()), batch)
    hidden = forward(batch.input_ids, **batch.context(), head=False)  # (B, T, C)
    loss = head_loss(hidden, head, batch.targets, batch.loss_mask)
    return torch.stack([loss, torch.zeros_like(loss)])


def summed_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy summed over scored targets, in nats. logits: (B, T, V). Returns ()."""
    return _losses(logits, batch).sum()


def summed_unlikelihood(logits: Tensor, batch: Batch, last: int) -> Tensor:
    """-log(1 - p) of the distinct tokens among the `last` read, summed over scored targets. Returns ()."""
    scores = logits.float()
    recent, counts = recent_tokens(batch.input_ids, batch.targets, last)

    # In one expression: a name for log p would keep (B, T, last) numbers until the backward pass is done.
    p = (scores.gather(2, recent) - scores.logsumexp(-1, keepdim=True)).exp().clamp(max=CERTAIN)
    return -(torch.log1p(-p) * (counts & batch.loss_mask[..., None])).sum()


def recent_tokens(input_ids: Tensor, targets: Tensor, last: int) -> tuple[Tensor, Tensor]:
    """The tokens that each position has read last, and which of them count: the nearest of equal ones, and
    not its target.

    input_ids, targets: (B, T). Returns ids (B, T, last), the k-th from k positions back, and bool of the same
    shape.
    """
    columns = input_ids.shape[1]
    recent = _looking_back(input_ids, last, -1)

    # How many positions after each token the same one comes again; `last` where that is out of sight.
    ahead = F.pad(input_ids, (0, last), value=-1).unfold(1, last + 1, 1)[:, :columns, 1:]
    again = ahead == input_ids[..., None]  # (B, T, last)
    distance = torch.where(again.any(-1), again.int().argmax(-1) + 1, last)  # (B, T)

    # A token k positions back is the nearest of its kind if none comes again within k.
    nearest = _looking_back(distance, last, 0) > torch.arange(last, device=input_ids.device)
    return recent.clamp(min=0), (recent >= 0) & nearest & (recent != targets[..., None])


def _looking_back(values: Tensor, last: int, beyond: int) -> Tensor:
    """(B, T) to (B, T, last): the value here, the one before, ..., and `beyond` before the first."""
    return F.pad(values, (last - 1, 0), value=beyond).unfold(1, last, 1).flip(-1)


def row_log_probabilities(logits: Tensor, batch: Batch) -> Tensor:
    """Log-probability of each row's scored targets, summed, in nats. logits: (B, T, V). Returns (B,)."""
    return -_losses(logits, batch).view(batch.targets.shape).sum(dim=1)


def _losses(logits: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy of every target, 0 where it is not scored, (B*T,)."""
    losses = F.cross_entropy(logits.float().flatten(0, 1), batch.targets.flatten(), reduction="none")
    return losses * batch.loss_mask.flatten()


def margins(logits: Tensor, batch: Batch) -> Tensor:
    """By how many nats more than its rejected answer each pair's chosen one gained over log p0. (B / 2,)."""
    assert batch.reference is not None, "rows of a preference carry log p0"
    gained = row_log_probabilities(logits, batch) - batch.reference  # (B,)
    return gained[0::2] - gained[1::2]
