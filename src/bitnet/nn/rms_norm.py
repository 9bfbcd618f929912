"""RMSNorm (arXiv:1910.07467): x / rms(x) * weight over the last dimension, computed in float32.

    y = w * x * r,   r = 1 / sqrt(mean(x^2) + eps)
    dL/dx = r * (g * w - x^ * mean(g * w * x^)),   dL/dw = sum over tokens of g * x^,   x^ = x * r

On a CPU torch runs its own rms_norm as a dozen separate passes in each direction. The passes here are the
fewest that plain operations allow; forward and backward of an update took 0.6 times as long. On other devices
torch's fused one runs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _RMSNormOnCPU(torch.autograd.Function):
    """Both passes with as few temporary tensors as possible, hence the operations in place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        inverse = mean_square.add_(eps).rsqrt_()  # (..., 1)
        ctx.save_for_backward(x, weight, inverse)
        normed: Tensor = (x * inverse).mul_(weight)
        return normed

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, inverse = ctx.saved_tensors
        grad = grads[0]
        normal = x * inverse  # x^
        product = grad * normal
        grad_weight = product.sum(dim=tuple(range(x.dim() - 1)))

        projection = (product @ weight).unsqueeze(-1).div_(x.shape[-1])  # (..., 1)
        grad_x = (grad * weight).sub_(normal.mul_(projection)).mul_(inverse)
        return grad_x, grad_weight, None


class RMSNorm(nn.Module):
    """Norm of a width with a learned weight. Keeps shape and dtype."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        exact = x.float()
        if x.device.type == "cpu" and not torch.compiler.is_compiling():
            y: Tensor = _RMSNormOnCPU.apply(exact, self.weight, self.eps)  # type: ignore[no-untyped-call]
            return y.to(x.dtype)
        return F.rms_norm(exact, self.weight.shape, self.weight, self.eps).to(x.dtype)
