"""Whether a fast path computes what the plain one does, tried on a run's first rows before it is used.

A fast path is a compiled model, a product on int8 codes, or a kernel. The loss of one batch and its gradient
for every parameter are computed both ways, with the run's objective, in its number format and on its device.
They may differ by rounding only:

    |fast - plain| <= grain * |plain| + 4 * |moved - plain|,  and never more than |plain| / 2

`moved` is the plain path again, with norm weights and embeddings multiplied by a few units of rounding, up or
down at random. It shows what rounding does to this model: the int8 quantizer makes a whole step of it
wherever an input lies between two codes, and every later layer does so again, up to the noise that the codes
have anyway. `grain` is the least that is allowed. The factor 4 admits that both differences are single draws;
a wrong operation is off by a large part of |plain|, or is not a number. A path that rounds more by design is
allowed that noise as well (`INT8_ROWS`).

Not here: which fast paths there are, and when they are tried (compiled.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bitnet.data.stream import Batch
from bitnet.nn.config import BitNetConfig
from bitnet.nn.transformer import BitNetTransformer
from bitnet.train.head_loss import head_loss
from bitnet.train.loop import Forward, autocast
from bitnet.train.objective import Objective, summed_loss, terms_of

Results = Mapping[str, Tensor]
"""The loss and the gradients of one batch, by name."""

FLOAT32, BFLOAT16 = 2**-24, 2**-9
"""Units of rounding: half the distance from 1 to the next number."""

FP16_SCALE = 2.0**10
"""What a loss is multiplied by in fp16 (optim/loss_scale.py); small enough for a healthy model's gradients.
"""

INT8_ROWS = 2**-3
"""The relative noise that int8 input gradients may add (nn/packed_linear.py): a row whose largest magnitude
is ten times its root mean square is off by 10 / 440 = 2%, and the four products of each of ten layers add up
to six times that. Measured on fresh models: 0.02. A scale left out or another matrix is off by 1 and more."""

FAINT = 2**-10
"""A gradient so much smaller than the largest one may be nothing but its rounding."""


def grain(config: BitNetConfig, *, bf16: bool) -> float:
    """The relative difference that every correct path may show.

    A sum of n terms in another order differs by about sqrt(n) units, and no sum here has more than 2^20
    terms: 2^10 units of float32. Products of bf16 numbers are summed in float32, so what counts is the chain
    of some 2^8 operations: 2^4 units of bf16. One weight in 10^4 that takes another code changes a matrix by
    1%: 2^-6 where weights or inputs have codes.
    """
    coded = config.weights == "ternary" or config.activations == "int8"
    return max(FLOAT32 * 2**10, BFLOAT16 * 2**4 if bf16 else 0.0, 2**-6 if coded else 0.0)


@dataclass(frozen=True)
class Trial:
    """What both paths are tried on: a run's model, first rows, objective and number format of autocast."""

    model: BitNetTransformer
    batch: Batch
    objective: Objective
    bf16: bool
    fp16: bool = False
    fused_loss: bool = False

    @property
    def reduced(self) -> bool:
        """Whether products have fewer digits than float32. fp16 has more than bf16 and gets its limits."""
        return self.bf16 or self.fp16

    def results(self, forward: Forward) -> Results:
        """Loss and gradients as in an update, of some form of the model. Leaves no gradient behind."""
        model, batch = self.model, self.batch
        model.zero_grad()
        with autocast(batch.input_ids.device, self.bf16, self.fp16):
            terms = terms_of(
                self.objective, forward, batch, model.lm_head.weight if self.fused_loss else None
            )
        loss = terms.sum() / max(self.objective.cases((batch,)), 1)
        scale = FP16_SCALE if self.fp16 else 1.0
        (loss * scale).backward()  # type: ignore[no-untyped-call]

        found = {"loss": loss.detach()}
        for name, parameter in model.named_parameters():
            found[f"gradient of {name}"] = (
                torch.zeros_like(parameter) if parameter.grad is None else parameter.grad / scale
            )
            parameter.grad = None
        return found


def refusal(trial: Trial, plain: Forward, fast: Forward, noise: float = 0.0) -> str | None:
    """Why the fast form may not be used, as words after a colon; None where it computes the same.

    noise: relative difference that the fast form may show because it rounds more.
    """
    right = trial.results(plain)
    unusable = [name for name, value in right.items() if not bool(torch.isfinite(value).all())]
    if unusable:
        return f"the {unusable[0]} is not finite without it either, so that nothing can be compared"
    with moved(trial.model, bf16=trial.reduced):
        least = max(noise, grain(trial.model.config, bf16=trial.reduced))
        allowed = limits(right, trial.results(plain), least)
    return difference(right, trial.results(fast), allowed)


def loss_refusal(trial: Trial) -> str | None:
    """As refusal, of the fused loss beside the plain one, on the same hidden states."""
    model, batch = trial.model, trial.batch
    with torch.no_grad(), autocast(batch.input_ids.device, trial.bf16, trial.fp16):
        states = model(batch.input_ids, **batch.context(), head=False)

    def results(head_only: Callable[[Tensor, Tensor], Tensor]) -> Results:
        hidden, head = states.clone().requires_grad_(), model.lm_head.weight.detach().requires_grad_()
        with autocast(batch.input_ids.device, trial.bf16, trial.fp16):
            loss = head_only(hidden, head) / max(int(batch.loss_mask.sum()), 1)
        loss.backward()  # type: ignore[no-untyped-call]
        assert hidden.grad is not None
        assert head.grad is not None
        return {
            "loss": loss.detach(),
            "gradient of the hidden states": hidden.grad,
            "gradient of the head": head.grad,
        }

    plain = results(lambda hidden, head: summed_loss(F.linear(hidden, head), batch))
    fused = results(lambda hidden, head: head_loss(hidden, head, batch.targets, batch.loss_mask))
    # Nothing is quantized after the hidden states, so that nothing magnifies rounding.
    least = BFLOAT16 * 2**4 if trial.reduced else FLOAT32 * 2**10
    return difference(plain, fused, limits(plain, plain, least))


@contextmanager
def moved(model: BitNetTransformer, *, bf16: bool) -> Iterator[None]:
    """Inside the block, norm weights and embeddings are off by 8 units of float32, or by one of bf16."""
    generator = torch.Generator().manual_seed(0)  # its own: the random state of training must not move
    weights = [
        parameter for name, parameter in model.named_parameters() if "norm" in name or "embeddings" in name
    ]
    before = [weight.detach().clone() for weight in weights]
    try:
        with torch.no_grad():
            for weight in weights:
                signs = torch.randint(0, 2, weight.shape, generator=generator).to(weight.device) * 2 - 1
                weight.mul_(1 + signs * (BFLOAT16 if bf16 else 8 * FLOAT32))
        yield
    finally:
        with torch.no_grad():
            for weight, old in zip(weights, before, strict=True):
                weight.copy_(old)


def limits(plain: Results, nudged: Results, least: float) -> dict[str, float]:
    """How far each result may be from the plain one. nudged: of the plain path with `moved` weights."""
    sizes = {name: _norm(value) for name, value in plain.items()}
    faint = FAINT * max(sizes.values())
    return {
        name: min(least * size + 4 * _norm(nudged[name].double() - plain[name].double()), size / 2)
        + least * faint
        for name, size in sizes.items()
    }


def difference(plain: Results, fast: Results, allowed: Mapping[str, float]) -> str | None:
    """The result that is furthest beyond its limit, in words; None where all are within theirs."""
    worst, words = 1.0, None
    for name, right in plain.items():
        off, limit, size = _norm(fast[name].double() - right.double()), allowed[name], _norm(right)
        if not math.isfinite(off):
            return f"the {name} is not finite"
        if off > worst * limit:
            worst = off / limit if limit else math.inf
            words = (
                f"the {name} is off by {off / (size or 1):.2g} of its size where rounding explains "
                f"{limit / (size or 1):.2g}"
            )
    return words


def _norm(value: Tensor) -> float:
    return float(torch.linalg.vector_norm(value.double()))
