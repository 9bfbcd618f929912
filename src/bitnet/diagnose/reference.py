"""The model once more, in float64, from the formulas of the papers, to judge the model by.

Written to share nothing with bitnet.nn: no import, other operations (complex numbers for the rotary
embedding, a plain softmax with a mask, one matrix at a time), double precision. Slow, and short enough to be
checked by reading.

    codes = clip(round(W / mean|W|), -1, 1)                       BitNet b1.58, arXiv:2402.17764, section 2
    x_q   = round(x * 127 / max|x|) * max|x| / 127, per token     the same
    straight-through: the derivative of both is 1                 arXiv:1308.3432
    norm  = w * x / sqrt(mean(x^2) + eps)                         RMSNorm, arXiv:1910.07467
    (x_i + i x_{i+D/2}) * exp(i * position * theta^(-2i/D))    RoFormer, arXiv:2104.09864, rotate-half pairs
    softmax(q k^T / sqrt(D) + mask) v, heads share k and v        arXiv:1706.03762, arXiv:2305.13245
    down(act(gate(x)) * up(x)), act = silu or relu^2              arXiv:2002.05202, arXiv:2504.12285

Not here: updates (reference_updates.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from bitnet.nn.config import BitNetConfig

SMALLEST = 1e-5  # the epsilon of both quantizers in the published reference code
Weights = Mapping[str, Tensor]


def matrix_rows(config: BitNetConfig, name: str) -> tuple[int, ...]:
    """Rows of each logical matrix in a projection: q, k, v; gate, up; or one. name: of the layer or of its
    weight, such as L0_attn_qkv or blocks.0.attention.qkv_proj.weight.
    """
    width, inner = config.hidden_size, config.ffn_hidden_size
    key = width // config.num_heads * config.num_kv_heads
    rows = {"qkv": (width, key, key), "out": (width,), "up": (inner, inner), "down": (width,)}
    return next(found for word, found in rows.items() if word in name)


def ternary(weight: Tensor, rows: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Codes (out, in) and the scale of each row (out, 1)."""
    codes, scales = [], []
    for part in torch.split(weight.double(), list(rows)):
        scale = torch.clamp(part.abs().sum() / part.numel(), min=SMALLEST)
        codes.append(torch.clamp(torch.round(part / scale), -1, 1))
        scales.append(scale.repeat(part.shape[0], 1))
    return torch.cat(codes), torch.cat(scales)


def int8_values(x: Tensor) -> Tensor:
    """The values that int8 codes stand for, one step per token. x: (..., in)."""
    largest = torch.clamp(x.abs().max(dim=-1, keepdim=True).values, min=SMALLEST)
    return torch.clamp(torch.round(x * 127 / largest), -128, 127) * largest / 127


def effective(weight: Tensor, rows: tuple[int, ...], config: BitNetConfig) -> Tensor:
    """The matrix that multiplies, with the gradient of the latent one."""
    weight = weight.double()
    if config.weights == "full":
        return weight
    codes, scale = ternary(weight.detach(), rows)
    return weight + (codes * scale - weight).detach()


def linear(x: Tensor, weight: Tensor, rows: tuple[int, ...], config: BitNetConfig) -> Tensor:
    """A ternary layer. x: (..., in). Returns (..., out)."""
    inputs = x.double()
    if config.activations == "int8":
        inputs = inputs + (int8_values(inputs) - inputs).detach()
    return inputs @ effective(weight, rows, config).T


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last dimension."""
    x = x.double()
    return weight.double() * x / torch.sqrt((x * x).mean(dim=-1, keepdim=True) + eps)


def turn(x: Tensor, theta: float) -> Tensor:
    """Rotary positions 0..T-1. x: (B, T, heads, D)."""
    half = x.shape[-1] // 2
    pair = torch.complex(x[..., :half].double(), x[..., half:].double())
    speed = theta ** (-torch.arange(half, dtype=torch.float64, device=x.device) / half)
    angle = torch.arange(x.shape[1], dtype=torch.float64, device=x.device)[:, None] * speed  # (T, D/2)
    turned = pair * torch.exp(1j * angle)[None, :, None, :]
    return torch.cat((turned.real, turned.imag), dim=-1)


def attend(qkv: Tensor, config: BitNetConfig, segments: Tensor | None = None) -> Tensor:
    """From the fused projection to what goes into the next norm or projection. qkv: (B, T, (H + 2G) D).
    Returns (B, T, C).

    segments: (B, T), or None; tokens of another number are not seen.
    """
    rows, tokens, _ = qkv.shape
    width = config.hidden_size // config.num_heads
    groups, heads = config.num_kv_heads, config.num_heads
    split = qkv.double().view(rows, tokens, heads + 2 * groups, width)
    q = turn(split[:, :, :heads], config.rope_theta)
    k, v = turn(split[:, :, heads:-groups], config.rope_theta), split[:, :, -groups:]

    future = torch.ones(tokens, tokens, dtype=torch.bool, device=qkv.device).triu(1)
    hidden = future.expand(rows, -1, -1)  # (B, T, T)
    if segments is not None:
        hidden = hidden | (segments[:, :, None] != segments[:, None, :])

    parts = []
    for head in range(heads):
        group = head * groups // heads
        scores = q[:, :, head] @ k[:, :, group].mT / width**0.5  # (B, T, T)
        parts.append(torch.softmax(scores.masked_fill(hidden, -torch.inf), dim=-1) @ v[:, :, group])
    return torch.cat(parts, dim=-1)


def gate(gate_up: Tensor, config: BitNetConfig) -> Tensor:
    """act(gate) * up. gate_up: (..., 2F). Returns (..., F)."""
    first, second = gate_up.double().chunk(2, dim=-1)
    act = first * torch.sigmoid(first) if config.activation == "silu" else torch.clamp(first, min=0) ** 2
    return act * second


def logits(weights: Weights, config: BitNetConfig, ids: Tensor, segments: Tensor | None = None) -> Tensor:
    """Next-token logits in float64. weights: parameters by name; ids: int64 (B, T). Returns (B, T, V)."""
    eps = config.norm_eps
    x = weights["token_embeddings.weight"].double()[ids]
    for layer in range(config.num_layers):
        x = _block(weights, config, x, f"blocks.{layer}.", segments)
    head = weights["token_embeddings.weight" if config.embeddings_tied else "lm_head.weight"]
    return norm(x, weights["final_norm.weight"], eps) @ head.double().T


def _block(weights: Weights, config: BitNetConfig, x: Tensor, at: str, segments: Tensor | None) -> Tensor:
    """One layer: attention, then feed-forward, each on a normalised copy. x: (B, T, C)."""

    def normed(value: Tensor, name: str) -> Tensor:
        return norm(value, weights[f"{at}{name}.weight"], config.norm_eps)

    def project(value: Tensor, name: str) -> Tensor:
        return linear(value, weights[f"{at}{name}.weight"], matrix_rows(config, name), config)

    y = attend(project(normed(x, "pre_attn_norm"), "attention.qkv_proj"), config, segments)
    if config.sub_norm:
        y = normed(y, "attention.sub_norm")
    x = x + project(y, "attention.out_proj")

    y = gate(project(normed(x, "pre_ffn_norm"), "feedforward.gate_up"), config)
    if config.sub_norm:
        y = normed(y, "feedforward.sub_norm")
    return x + project(y, "feedforward.down")


def summed_loss(scores: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy in nats, summed over the scored targets. scores: (B, T, V)."""
    right = scores.double().gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return ((torch.logsumexp(scores.double(), dim=-1) - right) * mask).sum()
