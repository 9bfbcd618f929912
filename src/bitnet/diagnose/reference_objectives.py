"""What an update minimises, once more in float64 from the definitions, to judge the loop and its objectives
by.

    next token      -log p(x_t), summed over the scored targets                                 definition
    unlikelihood    -log(1 - p(c)) for each distinct c among the `last` tokens read, c != x_t
                    (arXiv:1908.04319, token level)
    preference    -log sigmoid(beta ((log p(chosen) - log p0(chosen)) - (log p(rejected) - log p0(rejected))))
                    (arXiv:2305.18290)

The reported loss and penalty are means over the cases of the whole update (scored targets, or pairs), and the
gradient is of their sum divided by the cases, or not divided where `loss_reduction` is sum. Shares nothing
with bitnet.train.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from bitnet.data.stream import Batch
from bitnet.diagnose import reference

if TYPE_CHECKING:
    from bitnet.nn.config import BitNetConfig

CERTAIN = 1 - 1e-6  # of the settings' documentation: the unlikelihood of one token is at most 13.8 nats


class Wanted(NamedTuple):
    """What an update should report and be given. gradients: by parameter name, before clipping."""

    loss: float
    penalty: float
    gradients: dict[str, Tensor]


def wanted(
    weights: reference.Weights,
    config: BitNetConfig,
    batches: Sequence[Batch],
    training: Mapping[str, Any],
    step: int,
) -> Wanted:
    """Loss, penalty and straight-through gradient of update `step` from these weights on these
    micro-batches.
    """
    preference = training["objective"] == "preference"
    cases = sum(len(batch.input_ids) // 2 if preference else int(batch.loss_mask.sum()) for batch in batches)
    divisor = max(cases, 1) if training["loss_reduction"] == "mean" else 1
    leaves = {name: weight.detach().double().requires_grad_(True) for name, weight in weights.items()}
    totals = torch.zeros(2, dtype=torch.float64)
    for batch in batches:
        scores = reference.logits(leaves, config, batch.input_ids, batch.segments)
        terms = torch.stack(loss_and_penalty(scores, batch, training, step))
        (terms.sum() / divisor).backward()  # type: ignore[no-untyped-call]
        totals += terms.detach().cpu()
    loss, penalty = (totals / max(cases, 1)).tolist()
    gradients = {
        name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for name, leaf in leaves.items()
    }
    return Wanted(loss, penalty, gradients)


def loss_and_penalty(
    scores: Tensor, batch: Batch, training: Mapping[str, Any], step: int
) -> tuple[Tensor, Tensor]:
    """Sums over a micro-batch. scores: (B, T, V)."""
    nothing = scores.new_zeros(())
    if training["objective"] == "preference":
        return preference_loss(scores, batch, training["preference_beta"]), nothing
    loss = reference.summed_loss(scores, batch.targets, batch.loss_mask)
    stage = "stage1" if step <= training["stage1_end"] else "stage2"
    weight = training[f"{stage}_unlikelihood"]
    if not weight:
        return loss, nothing
    return loss, weight * unlikelihood(scores, batch, training["unlikelihood_tokens"])


def unlikelihood(scores: Tensor, batch: Batch, last: int) -> Tensor:
    """Summed over the scored targets, one position after another. scores: (B, T, V)."""
    log_p = torch.log_softmax(scores.double(), dim=-1)
    total = scores.new_zeros((), dtype=torch.float64)
    ids, targets, mask = batch.input_ids.tolist(), batch.targets.tolist(), batch.loss_mask.tolist()
    for row in range(len(ids)):
        for place in range(len(ids[row])):
            recent = sorted(set(ids[row][max(0, place - last + 1) : place + 1]) - {targets[row][place]})
            if mask[row][place] and recent:
                p = log_p[row, place, recent].exp().clamp(max=CERTAIN)
                total = total - torch.log1p(-p).sum()
    return total


def preference_loss(scores: Tensor, batch: Batch, beta: float) -> Tensor:
    """Summed over pairs: rows 0, 2, 4 ... are the chosen sides, rows 1, 3, 5 ... the rejected ones."""
    assert batch.reference is not None
    log_p = torch.log_softmax(scores.double(), dim=-1)
    log_p = log_p.gather(-1, batch.targets.unsqueeze(-1)).squeeze(-1)  # (B, T)
    gained = (log_p * batch.loss_mask).sum(dim=1) - batch.reference.double()
    return torch.log1p(torch.exp(-beta * (gained[0::2] - gained[1::2]))).sum()
