"""Muon: momentum whose direction is made orthogonal, for the ternary matrices.

The momentum of a matrix, G = U S V^T, is replaced by about U V^T, so that every singular direction moves by
the same amount (K. Jordan, 2024, kellerjordan.github.io/posts/muon). Five Newton-Schulz iterations of

    X <- a X + (b A + c A^2) X,   A = X X^T

approximate it without a decomposition. The update is scaled by sqrt(max(1, out / in)).

The arithmetic is that of torch.optim.Muon, which a test compares it with; two things differ. A fused
projection is several logical matrices in one parameter, and each is orthogonalised by itself, while torch
takes whole parameters. And torch iterates in bfloat16, while on a CPU this does so only where it is asked to:
without bfloat16 units such products run at under a third of the float32 rate, with them at twice it. In
float32, matrices more than twice as long as high are not multiplied at every iteration, and of symmetric
products only half is computed; both are exact but for rounding.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

from bitnet.optim.adamw import ParameterGroups

# Quintic coefficients that maximise the slope at zero (Jordan, 2024); torch.optim.Muon has the same.
A, B, C = 3.4445, -4.7750, 2.0315
ITERATIONS = 5
AT_ONCE = (3, 2)
"""How the five are divided for long matrices in float32; all at once are off by up to 0.007 (docs/log.md)."""
STRIPS_FROM = 192
"""Height from which half a symmetric product is faster than a whole one, in float32 (docs/log.md)."""
EPSILON = 1e-7  # torch.optim.Muon's: a gradient of zero stays zero


def orthogonalize(matrices: Tensor) -> Tensor:
    """About U V^T of each matrix. matrices: (n, out, in). Returns the same shape and dtype."""
    x = matrices
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        # The Gram matrix X X^T is then the small one. Copied, because batched products of views are slow.
        x = x.mT.contiguous()  # (n, small, large)

    # The iteration converges for singular values up to 1, and none exceeds the Frobenius norm.
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=EPSILON)
    if x.dtype == torch.float32 and x.shape[-1] > 2 * x.shape[-2]:
        for iterations in AT_ONCE:
            x = _product_of_polynomials(_symmetric_product(x, x.mT), iterations) @ x
    else:
        for _ in range(ITERATIONS):
            gram = _symmetric_product(x, x.mT)
            polynomial = _symmetric_product(gram, gram, added=gram, beta=B, alpha=C)
            x = torch.baddbmm(x, polynomial, x, beta=A)

    return x.mT if tall else x


def _product_of_polynomials(start: Tensor, iterations: int) -> Tensor:
    """Q with X_k = Q X_0, from A_0 = X_0 X_0^T alone: long matrices are multiplied four times instead of ten.

    Every partial product Q_k is a polynomial in A_0 and commutes with it, so A_k = Q_k A_0 Q_k. A singular
    value near zero grows by A in each iteration, so Q_k is up to A^k, and the rounding of A_k up to A^2k
    units. Over all five iterations it would hide singular values, so a new Gram matrix is taken after three;
    in bfloat16 it would hide them at once. start: (n, small, small), of which at most four are held.
    """
    product = None
    for _ in range(iterations):
        # Polynomials in A_0 commute, so that all of these products are symmetric but for rounding.
        gram = start if product is None else _symmetric_product(_symmetric_product(product, start), product)
        polynomial = _symmetric_product(gram, gram, added=gram, beta=B, alpha=C)
        del gram
        polynomial.diagonal(dim1=-2, dim2=-1).add_(A)
        product = polynomial if product is None else _symmetric_product(polynomial, product)
        del polynomial
    assert product is not None
    return product


def _symmetric_product(
    left: Tensor, right: Tensor, *, added: Tensor | None = None, beta: float = 0.0, alpha: float = 1.0
) -> Tensor:
    """beta * added + alpha * left @ right, where that is symmetric: only what is not below the diagonal is
    computed.

    Four strips of rows, each from the diagonal on, are 5/8 of the product. left: (n, small, k), right:
    (n, k, small), added: (n, small, small), symmetric. Returns (n, small, small).
    """
    matrices, small = left.shape[:2]
    out = left.new_empty(matrices, small, small)
    added = out if added is None else added  # not read where beta is 0
    if left.dtype != torch.float32 or small < STRIPS_FROM:
        return torch.baddbmm(added, left, right, beta=beta, alpha=alpha)

    width = 16 * -(-small // 64)
    for top in range(0, small, width):
        end = min(top + width, small)
        strip = added[:, top:end, top:], left[:, top:end], right[..., top:]
        torch.baddbmm(*strip, beta=beta, alpha=alpha, out=out[:, top:end, top:])
        out[:, end:, top:end] = out[:, top:end, end:].mT
    return out


class Muon(ParameterGroups):
    """Muon over (parameter, rows) pairs; rows are the heights of the logical matrices in the parameter."""

    def __init__(
        self, matrices: Iterable[tuple[Tensor, tuple[int, ...]]], *, momentum: float, bf16: bool = False
    ) -> None:
        """momentum: share of the past in the moving average; bf16: iterate in bfloat16. The rates are set
        before each step.
        """
        self.rows, self.bf16 = dict(matrices), bf16
        super().__init__([{"params": list(self.rows), "lr": 0.0, "weight_decay": 0.0, "momentum": momentum}])

    @torch.no_grad()
    def step(self) -> None:
        """Apply one update to every parameter that has a gradient."""
        for group in self.param_groups:
            # Logical matrices of equal shape are orthogonalised in one batch.
            by_shape: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                rows = list(self.rows[parameter])
                direction = self._momentum(parameter, group["momentum"])
                if group["weight_decay"]:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parts = zip(torch.split(parameter, rows), torch.split(direction, rows), strict=True)
                for target, part in parts:
                    by_shape[tuple(part.shape)].append((target, part))

            for (out, width), pairs in by_shape.items():
                stacked = torch.stack([part for _, part in pairs])
                updates = orthogonalize(stacked.bfloat16() if self.bf16 else stacked)
                rate = group["lr"] * max(1.0, out / width) ** 0.5
                for (target, _), update in zip(pairs, updates, strict=True):
                    target.add_(update.to(target.dtype), alpha=-rate)

    def _momentum(self, parameter: Tensor, momentum: float) -> Tensor:
        """Update the moving average of the gradient; return the Nesterov look-ahead, (out, in)."""
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer = state["momentum_buffer"]
        buffer.lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(buffer, momentum)
