"""Faults of the ternary weights, the int8 activations and the forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from bitnet.nn import bitlinear, quantize, rms_norm, transformer
from bitnet.nn.quantize import Int8Rows
from bitnet.nn.transformer import BitNetTransformer
from bitnet.optim.optimizer import Optimizers
from planted.fault import by_settings, fault


def after_init(change: Callable[[Any], object]) -> None:
    """Do something to every model that is made."""
    original = BitNetTransformer.__init__

    def made(self: Any, config: Any) -> None:
        original(self, config)
        with torch.no_grad():
            change(self)

    BitNetTransformer.__init__ = made  # type: ignore[method-assign]


@fault("activations unquantized", "quantization", "inputs quantized")
def _() -> None:
    def forward(self: Any, x: Any) -> Any:
        return F.linear(
            x,
            bitlinear.straight_through(
                self.weight, bitlinear.ternarize(self.weight, self.rows).dequantized()
            ),
        )

    bitlinear.BitLinear.forward = forward  # type: ignore[method-assign]


@fault("activations quantized per tensor", "quantization", "inputs quantized")
def _() -> None:
    def coarse(x: Any) -> Any:
        largest = x.detach().abs().max().clamp(min=1e-5)
        return Int8Rows(
            (x.detach() * (127 / largest)).round().to(torch.int8), (largest / 127).expand(*x.shape[:-1], 1)
        )

    bitlinear.quantize_activations = coarse  # type: ignore[assignment]


@fault("weights not ternary", "quantization", "ternary")
def _() -> None:
    bitlinear.BitLinear.forward = lambda self, x: F.linear(
        bitlinear.straight_through(x, bitlinear.quantize_activations(x).dequantized()), self.weight
    )  # type: ignore[method-assign]


@fault("scale from the largest weight", "quantization", "scale")
def _() -> None:
    quantize.row_scales = lambda weight, rows: torch.cat(
        [p.abs().max().expand(len(p)) for p in weight.split(list(rows))]
    )[:, None]


@fault("scale halved after rounding", "quantization", "scale")
def _() -> None:
    original = bitlinear.ternarize
    bitlinear.ternarize = lambda *words: original(*words)._replace(row_scale=original(*words).row_scale * 0.5)  # type: ignore[assignment]


@fault("one scale for a fused projection", "quantization", "scale")
def _() -> None:
    original = bitlinear.ternarize
    bitlinear.ternarize = lambda weight, rows=None: original(weight)  # type: ignore[assignment]
    after_init(
        lambda model: [
            layer.weight[: layer.rows[0]].mul_(3)
            for layer in model.bit_linears().values()
            if len(layer.rows) > 1
        ]
    )


@fault("codes with the wrong sign", "quantization", "codes")
def _() -> None:
    original = bitlinear.ternarize
    bitlinear.ternarize = lambda *words: original(*words)._replace(codes=-original(*words).codes)  # type: ignore[assignment]


@fault("codes of earlier weights", "quantization", "after the update")
def _() -> None:
    original, kept = bitlinear.ternarize, {}
    bitlinear.ternarize = lambda weight, rows=None: kept.setdefault(
        weight.data_ptr(), (weight, original(weight, rows))
    )[1]  # type: ignore[assignment]


@fault("a layer of zeros", "quantization", "zeros")
def _() -> None:
    after_init(lambda model: model.blocks[1].feedforward.gate_up.weight.zero_())


@fault("NaN in one layer", "quantization", "finite")
def _() -> None:
    after_init(lambda model: model.blocks[0].attention.out_proj.weight[0, 0].fill_(float("nan")))


@fault("tied head untied", "quantization", "tied")
def _() -> None:
    after_init(
        lambda model: setattr(model.lm_head, "weight", torch.nn.Parameter(model.lm_head.weight.clone()))
    )


@fault("embeddings of N(0, 1)", "quantization", "step-0 loss")
def _() -> None:
    after_init(lambda model: model.token_embeddings.weight.normal_())


@fault("bf16 master weights", "quantization optimizer", "full precision")
def _() -> None:
    after_init(lambda model: [p.copy_(p.bfloat16().float()) for p in model.parameters()])
    original = Optimizers.step

    def step(self: Any, rates: Any) -> None:
        original(self, rates)
        with torch.no_grad():
            for parameter in self.names:
                parameter.copy_(parameter.bfloat16().float())

    Optimizers.step = step  # type: ignore[method-assign]


@fault("no causal mask", "quantization", "causal mask")
def _() -> None:
    original = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = lambda q, k, v, mask=None, is_causal=False, **rest: original(
        q, k, v, mask, is_causal=False, **rest
    )


@fault("no rotary", "quantization", "attention and rotary")
def _() -> None:
    transformer.rotate = lambda x, cos, sin: x


@fault("rotary on the wrong pairs", "quantization", "attention and rotary")
def _() -> None:
    def rotate(x: Any, cos: Any, sin: Any) -> Any:
        turned = torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)
        return x * cos + turned * sin

    transformer.rotate = rotate


@fault("rotary with another base", "quantization", "attention and rotary")
def _() -> None:
    original = transformer.rotary_table
    transformer.rotary_table = lambda width, length, theta: original(width, length, 100.0)


@fault("norm subtracts the mean", "quantization", "norms")
def _() -> None:
    original = rms_norm.RMSNorm.forward
    rms_norm.RMSNorm.forward = lambda self, x: original(self, x - x.mean(-1, keepdim=True))  # type: ignore[method-assign]


@fault("another activation function", "quantization", "feed-forward")
def _() -> None:
    F.silu = F.gelu


@fault("no residual around the feed-forward", "quantization", "residual")
def _() -> None:
    def forward(self: Any, x: Any, cos: Any, sin: Any, *rest: Any) -> Any:
        x = x + self.attention(self.pre_attn_norm(x), cos, sin, *rest)
        return self.feedforward(self.pre_ffn_norm(x))

    transformer.Block.forward = forward  # type: ignore[method-assign]


def _quantizer_in(change: Callable[[Any], Any]) -> None:
    """Quantize activations otherwise, wherever it is done."""
    bitlinear.quantize_activations = quantize.quantize_activations = change  # type: ignore[assignment]


@fault("int8 steps in the input's format, unclamped", "quantization", "bfloat16")
def _() -> None:
    def wraps(x: Any) -> Any:
        largest = x.detach().abs().amax(-1, keepdim=True).clamp(min=1e-5)
        return Int8Rows((x.detach() * (127.0 / largest)).round().to(torch.int8), largest.float() / 127.0)

    _quantizer_in(wraps)


@fault("int8 codes rounded in the input's format", "quantization", "float16")
def _() -> None:
    def coarse(x: Any) -> Any:
        largest = x.detach().abs().amax(-1, keepdim=True).clamp(min=1e-5)
        return Int8Rows(
            (x.detach() * (127.0 / largest)).round().clamp(-128, 127).to(torch.int8), largest.float() / 127.0
        )

    _quantizer_in(coarse)


@fault("positions stand still beyond 140", "quantization", "attention and rotary")
def _() -> None:
    original = transformer.rotary_table

    def table(width: int, length: int, theta: float) -> Any:
        places = torch.arange(length).clamp(max=140)
        return tuple(part[places] for part in original(width, length, theta))

    transformer.rotary_table = table


@fault("key/value heads handed out in turn", "quantization", "attention and rotary")
def _() -> None:
    original = F.scaled_dot_product_attention

    def interleaved(q: Any, k: Any, v: Any, *words: Any, enable_gqa: bool = False, **rest: Any) -> Any:
        times = q.shape[1] // k.shape[1]
        return original(q, k.repeat(1, times, 1, 1), v.repeat(1, times, 1, 1), *words, **rest)

    F.scaled_dot_product_attention = interleaved


@fault("epsilon outside the root", "quantization", "norms")
def _() -> None:
    def forward(self: Any, x: Any) -> Any:
        return (self.weight * x.float() / (x.float().pow(2).mean(-1, keepdim=True).sqrt() + self.eps)).to(
            x.dtype
        )

    rms_norm.RMSNorm.forward = forward  # type: ignore[method-assign]


@fault("norm weights unused in sub-norms", "quantization", "norms")
def _() -> None:
    original = rms_norm.RMSNorm.forward
    rms_norm.RMSNorm.forward = lambda self, x: (
        original(self, x) / (self.weight if self.weight.shape[0] == 72 else 1)
    )  # type: ignore[method-assign]


@fault("texts of one row see each other", "quantization gradients", "texts of one row")
def _() -> None:
    original = transformer.segment_mask
    transformer.segment_mask = lambda segments: original(torch.zeros_like(segments))


@fault("all layers begin alike", "quantization", "differ from each other")
def _() -> None:
    after_init(
        lambda model: [
            p.copy_(q)
            for p, q in zip(model.blocks[1].parameters(), model.blocks[0].parameters(), strict=True)
        ]
    )


@fault("projections to the stream begin too large", "quantization", "spread")
def _() -> None:
    after_init(lambda model: [block.feedforward.down.weight.mul_(2) for block in model.blocks])


by_settings("rotary base of 3", "quantization", "rotary", "--model.rope-theta 3")
