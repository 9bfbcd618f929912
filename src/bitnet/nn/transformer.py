"""The BitNet b1.58 decoder: RMSNorm, rotary grouped-query attention, gated feed-forward, ternary linear
layers.

    x = E[ids];   for each block:  x += Attention(norm(x));  x += FeedForward(norm(x));
    logits = norm(x) @ head^T

Only the projections inside the blocks are ternary (arXiv:2402.17764): embeddings, norms and the output head
keep full precision, and a tied head is the embedding itself. Shapes at each step:

    B rows   T tokens   C hidden width   H query heads   G key/value heads   D head width
    F feed-forward width   V vocabulary

Not here: the loss, decoding, and anything that knows where a weight came from.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitnet.errors import ConfigError
from bitnet.nn import fused as fused_forms
from bitnet.nn.attend import attend
from bitnet.nn.bitlinear import BitLinear, Product
from bitnet.nn.cached_rows import CachedRows
from bitnet.nn.config import Activation, BitNetConfig
from bitnet.nn.kv_cache import KVCache
from bitnet.nn.packed_linear import InputGradient
from bitnet.nn.rms_norm import RMSNorm
from bitnet.nn.rotary import rotary_table, rotate

INITIAL_STD = 0.02
"""Of projections and of an untied head, as in GPT-2 and Llama."""


def _linear(config: BitNetConfig, width: int, rows: tuple[int, ...]) -> BitLinear:
    return BitLinear(width, rows, weights=config.weights, activations=config.activations)


def segment_mask(segments: Tensor) -> Tensor:
    """True where a token may attend: earlier in its own segment, or itself. (B, T) -> bool (B, 1, T, T)."""
    tokens = segments.shape[1]
    causal = torch.ones(tokens, tokens, dtype=torch.bool, device=segments.device).tril()
    return (segments[:, :, None] == segments[:, None, :]).logical_and(causal).unsqueeze(1)


class Attention(nn.Module):
    """Causal grouped-query attention (arXiv:2305.13245) with rotary positions. (B, T, C) -> (B, T, C)."""

    def __init__(self, config: BitNetConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.heads, self.kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        self.qkv_proj = _linear(config, config.hidden_size, (query, key, key))
        self.sub_norm = RMSNorm(query, config.norm_eps) if config.sub_norm else None
        self.out_proj = _linear(config, query, (config.hidden_size,))

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        cache: KVCache | None,
        mask: Tensor | None = None,
        norm: RMSNorm | None = None,
    ) -> Tensor:
        """norm: applied to x first, by the fused forms (fused.py); without it, x is normalised already."""
        rows, tokens, _ = x.shape
        if norm is not None:
            qkv = fused_forms.normed_product(norm, self.qkv_proj, x)
            q, k, v = fused_forms.turned_heads(qkv, cos, sin, self.heads, self.kv_heads)
        else:
            heads = self.qkv_proj(x).view(rows, tokens, -1, self.head_dim).transpose(1, 2)  # (B, H+2G, T, D)
            q, k, v = heads.split((self.heads, self.kv_heads, self.kv_heads), dim=1)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)  # (B, H, T, D), (B, G, T, D)

        if cache is not None:
            past = cache.length
            k, v = cache.extend(self.layer, k, v)  # (B, G, past + T, D)
            # is_causal aligns the first query with the first key; these queries begin after `past` keys.
            if past and tokens > 1:
                mask = torch.ones(tokens, past + tokens, dtype=torch.bool, device=x.device).tril(past)

        # A single new token may attend to everything before it, so it needs no mask. The branch makes a truth
        # value of what is a symbol where torch.compile lets lengths vary.
        causal = mask is None
        if tokens == 1:
            causal = False
        y = attend(q, k, v, mask, causal=causal)
        y = y.transpose(1, 2).reshape(rows, tokens, -1)  # (B, T, C)
        if norm is not None and self.sub_norm is not None:
            return fused_forms.normed_product(self.sub_norm, self.out_proj, y)
        out: Tensor = self.out_proj(y if self.sub_norm is None else self.sub_norm(y))
        return out


class FeedForward(nn.Module):
    """down(activation(gate(x)) * up(x)), gated as in arXiv:2002.05202. (B, T, C) -> (B, T, C)."""

    def __init__(self, config: BitNetConfig) -> None:
        super().__init__()
        inner = config.ffn_hidden_size
        self.activation: Activation = config.activation
        self.gate_up = _linear(config, config.hidden_size, (inner, inner))
        self.sub_norm = RMSNorm(inner, config.norm_eps) if config.sub_norm else None
        self.down = _linear(config, inner, (config.hidden_size,))

    def forward(self, x: Tensor, norm: RMSNorm | None = None) -> Tensor:
        """norm: applied to x first, by the fused forms (fused.py); without it, x is normalised already."""
        if norm is not None:
            gate_up = fused_forms.normed_product(norm, self.gate_up, x)
            return fused_forms.gated_product(self.sub_norm, self.down, gate_up, self.activation)

        gate, up = self.gate_up(x).chunk(2, dim=-1)  # (B, T, F) each
        y = (F.silu(gate) if self.activation == "silu" else F.relu(gate).square()) * up
        out: Tensor = self.down(y if self.sub_norm is None else self.sub_norm(y))
        return out


class Block(nn.Module):
    """One layer: attention, then feed-forward, each on a normalised copy of the residual stream."""

    def __init__(self, config: BitNetConfig, layer: int) -> None:
        super().__init__()
        self.pre_attn_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.attention = Attention(config, layer)
        self.pre_ffn_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.feedforward = FeedForward(config)
        self.fused = False

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache | None = None, mask: Tensor | None = None
    ) -> Tensor:
        if self.fused and cache is None and torch.is_grad_enabled():
            x = x + self.attention(x, cos, sin, None, mask, self.pre_attn_norm)
            trained: Tensor = x + self.feedforward(x, self.pre_ffn_norm)
            return trained

        x = x + self.attention(self.pre_attn_norm(x), cos, sin, cache, mask)
        out: Tensor = x + self.feedforward(self.pre_ffn_norm(x))
        return out


class BitNetTransformer(nn.Module):
    """Token ids (B, T) to next-token logits (B, T, V)."""

    cos: Tensor
    sin: Tensor
    mixes_lengths = False  # rows of one length are computed together

    def __init__(self, config: BitNetConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.final_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.embeddings_tied:
            self.lm_head.weight = self.token_embeddings.weight

        # Not persistent: they follow from the configuration, so that no checkpoint holds them.
        cos, sin = rotary_table(config.head_dim, config.max_seq_length, config.rope_theta)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        """N(0, 0.02); projections that write to the residual stream 1/sqrt(2L) of that (GPT-2, section 2.3).

        The residual stream begins as the token's own embedding, so with a tied head the logit of the present
        token is about C times the embedding's standard deviation: 15 at 0.02 and C = 768, far above ln(V). A
        tied embedding therefore gets 1/C, and what is added to it shrinks in the same proportion, so that the
        stream still begins as mostly the token itself. Without the second half held-out arithmetic suffered
        (docs/log.md).
        """
        config = self.config
        tied_std = min(INITIAL_STD, 1 / config.hidden_size)
        embedding_std = tied_std if config.embeddings_tied else INITIAL_STD
        residual_std = embedding_std / math.sqrt(2 * config.num_layers)
        for name, parameter in self.named_parameters():
            if name == "token_embeddings.weight":
                nn.init.normal_(parameter, std=embedding_std)
            elif name.endswith(("out_proj.weight", "down.weight")):
                nn.init.normal_(parameter, std=residual_std)
            elif parameter.dim() == 2:
                nn.init.normal_(parameter, std=INITIAL_STD)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.final_norm.weight.device

    def bit_linears(self) -> dict[str, BitLinear]:
        """The ternary layers in order, by short name: L0_attn_qkv, L0_attn_out, L0_ffn_gate_up, ..."""
        layers: dict[str, BitLinear] = {}
        for index, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            layers[f"L{index}_attn_qkv"] = block.attention.qkv_proj
            layers[f"L{index}_attn_out"] = block.attention.out_proj
            layers[f"L{index}_ffn_gate_up"] = block.feedforward.gate_up
            layers[f"L{index}_ffn_down"] = block.feedforward.down
        return layers

    def set_product(
        self,
        product: Product,
        gradient_dtype: torch.dtype = torch.float32,
        input_gradient: InputGradient = "float",
        weight_dtype: torch.dtype | None = None,
        *,
        fused: bool = False,
    ) -> None:
        """Choose how every ternary layer multiplies (bitlinear.py), and whether blocks train by the fused
        forms (fused.py). Only the packed product has int8 gradients, fused forms and a weight_dtype, the
        format of its weight gradient, which is gradient_dtype if not given.
        """
        assert product == "packed" or (input_gradient == "float" and not fused), (product, input_gradient)
        for block in self.blocks:
            assert isinstance(block, Block)
            block.fused = fused and self.config.on_codes
        for layer in self.bit_linears().values():
            layer.product, layer.gradient_dtype = product, gradient_dtype
            layer.input_gradient, layer.weight_dtype = input_gradient, weight_dtype

    def new_cache(self, rows: int, capacity: int | None = None) -> KVCache:
        """An empty cache for `rows` sequences of up to `capacity` tokens (default: max_seq_length)."""
        config = self.config
        room = min(capacity or config.max_seq_length, config.max_seq_length)
        like = self.final_norm.weight
        return KVCache(config.num_layers, rows, config.num_kv_heads, room, config.head_dim, like=like)

    def new_rows(self, count: int, capacity: int | None = None) -> CachedRows:
        """Room for `count` texts of up to `capacity` tokens (default: max_seq_length)."""
        return CachedRows(self, count, capacity)

    def hidden(
        self, input_ids: Tensor, cache: KVCache | None = None, segments: Tensor | None = None
    ) -> Tensor:
        """Normalised output of the last block. input_ids: int64 (B, T). Returns (B, T, C).

        segments: int64 (B, T); a token attends only to tokens of its own number. Without it, all tokens of a
        row are one text. Raises ConfigError for more tokens than the model's max_seq_length.
        """
        assert cache is None or segments is None, "each row of a cache is one text"
        start = cache.length if cache is not None else 0
        end = start + input_ids.shape[1]
        if end > self.config.max_seq_length:
            raise ConfigError(
                f"{end} tokens do not fit the model's max_seq_length of {self.config.max_seq_length}; give "
                "it a shorter text"
            )

        x = self.token_embeddings(input_ids)  # (B, T, C)
        mask = None if segments is None else segment_mask(segments)
        for block in self.blocks:
            x = block(x, self.cos[start:end], self.sin[start:end], cache, mask)

        # Only now: every layer writes its keys and values at the same position.
        if cache is not None:
            cache.advance(input_ids.shape[1])
        hidden: Tensor = self.final_norm(x)
        return hidden

    def forward(
        self,
        input_ids: Tensor,
        cache: KVCache | None = None,
        segments: Tensor | None = None,
        *,
        head: bool = True,
    ) -> Tensor:
        """Next-token logits. input_ids: int64 (B, T). Returns (B, T, V); without `head` what it multiplies,
        (B, T, C).
        """
        hidden = self.hidden(input_ids, cache, segments)
        return self.lm_head(hidden) if head else hidden
