"""The two quantizers of BitNet b1.58. Training, statistics, evaluation and packing all call these.

Weights (arXiv:2402.17764, section 2). One scale per logical matrix, the mean magnitude:

    scale = mean(|W|)        codes = clip(round(W / scale), -1, 1)        W ~ codes * scale

A weight becomes 0 when |w| < scale / 2; for a Gaussian that is about 31% of them. A fused projection
(q, k, v or gate, up) stacks several logical matrices in one tensor and keeps one scale for each, so
that a fused and a split model compute the same.

Activations (same section; "per token" is one row of the input). Symmetric int8 by the largest magnitude:

    step = max(|x|) / 127    codes = clip(round(x / step), -128, 127)     x ~ codes * step

Both are computed in float32 whatever the format of the tensor, and scales and steps stay float32. In bf16,
whose numbers between 64 and 128 are 0.5 apart, the largest input could come out as 127.5, which rounds to 128
and wraps to -128 in int8.

Both epsilons are 1e-5 as in the published reference code (BitNet b1.58 training tips, appendix).
Ternarizing codes * scale again keeps the codes but shrinks the scale by the share of non-zeros, which
is why an exporter must carry the scale instead of computing it a second time.

Not here: gradients (bitlinear.py) and bit packing (packing.py).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

EPSILON = 1e-5


class Ternary(NamedTuple):
    """codes: int8 (out, in) in {-1, 0, 1}; row_scale: float32 (out, 1), equal within each logical matrix."""

    codes: Tensor
    row_scale: Tensor

    def dequantized(self) -> Tensor:
        """codes * scale: float32 (out, in)."""
        return self.codes.to(self.row_scale.dtype) * self.row_scale


def row_scales(weight: Tensor, rows: tuple[int, ...]) -> Tensor:
    """Mean magnitude of each logical matrix, repeated for its rows.

    weight: (out, in); rows: output rows of each logical matrix, sum(rows) == out. Returns float32 (out, 1).
    """
    matrices = torch.split(weight.float(), list(rows))
    scales = [matrix.abs().mean().clamp(min=EPSILON).expand(len(matrix)) for matrix in matrices]
    return torch.cat(scales).unsqueeze(1)


def ternarize(weight: Tensor, rows: tuple[int, ...] | None = None) -> Ternary:
    """Absmean ternary codes of a weight. weight: (out, in) floating point; rows as in `row_scales`."""
    weight = weight.detach().float()
    scale = row_scales(weight, rows or (weight.shape[0],))
    return Ternary((weight / scale).round_().clamp_(-1, 1).to(torch.int8), scale)


class Int8Rows(NamedTuple):
    """codes: int8 (..., in); step: float32 (..., 1), the value of one unit of a code."""

    codes: Tensor
    step: Tensor

    def dequantized(self) -> Tensor:
        """codes * step: float32 (..., in)."""
        return self.codes.to(self.step.dtype) * self.step


def quantize_activations(x: Tensor) -> Int8Rows:
    """Absmax int8 codes per token. x: (..., in) floating point."""
    x = x.detach().float()
    largest = x.abs().amax(dim=-1, keepdim=True).clamp_(min=EPSILON)
    # The inverse is multiplied, as in the reference code: x / step may round a tie to the other code.
    codes = (x * (127.0 / largest)).round_().clamp_(-128, 127).to(torch.int8)
    return Int8Rows(codes, largest / 127.0)
