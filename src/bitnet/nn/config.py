"""The shape and numerics of a model as a value. Free of torch, so that pages and lists need not load it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from bitnet.bounds import MOST_ENTRIES, Bounds, check_fields
from bitnet.errors import ConfigError
from bitnet.typed import from_json

Activation = Literal["silu", "relu2"]
Weights = Literal["ternary", "full"]
Activations = Literal["int8", "full"]
BOUNDS: dict[str, Bounds] = {
    "vocab_size": (1, MOST_ENTRIES),
    "hidden_size": (1, 1 << 17),
    "num_layers": (1, 4096),
    "num_heads": (1, 4096),
    "num_kv_heads": (1, 4096),
    "ffn_hidden_size": (1, 1 << 20),
    "max_seq_length": (1, 1 << 22),
    "norm_eps": (1e-12, 1.0),
    "rope_theta": (1e-3, 1e12),
}
DERIVED = ("head_dim", "total_params")
"""Figures that meta/config.json holds beside the fields."""


@dataclass(frozen=True, kw_only=True)
class BitNetConfig:
    """Shape and numerics of a model."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    ffn_hidden_size: int
    max_seq_length: int
    norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    embeddings_tied: bool = True
    activation: Activation = "silu"
    """silu: SwiGLU of b1.58; relu2: squared ReLU of 2B4T (arXiv:2504.12285, section 2)."""
    sub_norm: bool = False
    """RMSNorm before the output and the down projection, as in 2B4T."""
    weights: Weights = "ternary"
    activations: Activations = "int8"

    def __post_init__(self) -> None:
        check_fields("model.", self, BOUNDS)
        if self.hidden_size % self.num_heads:
            raise ConfigError(
                f"model.hidden_size {self.hidden_size} is not divisible by model.num_heads {self.num_heads}; "
                "change one of them"
            )
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"model.num_heads {self.num_heads} is not divisible by model.num_kv_heads "
                f"{self.num_kv_heads}; change one of them"
            )
        if self.head_dim % 2:
            raise ConfigError(
                f"the head width {self.hidden_size} / {self.num_heads} = {self.head_dim} is odd; "
                "rotary embedding needs an even one, so change model.hidden_size or model.num_heads"
            )

    def with_weights(self, weights: Weights) -> BitNetConfig:
        """The same shape with these weights. Full ones come with unquantised activations: the control."""
        activations: Activations = "full" if weights == "full" else self.activations
        return replace(self, weights=weights, activations=activations)

    @property
    def on_codes(self) -> bool:
        """Whether products multiply codes: ternary weights and int8 activations."""
        return self.weights == "ternary" and self.activations == "int8"

    @property
    def head_dim(self) -> int:
        """D, the width of one head."""
        return self.hidden_size // self.num_heads

    @property
    def heads_per_group(self) -> int:
        """Query heads that share one key/value head."""
        return self.num_heads // self.num_kv_heads

    @property
    def total_params(self) -> int:
        """Exact number of trained parameters, a tied embedding counted once."""
        return sum(self.parameter_breakdown().values())

    def flops_per_token(self, tokens: int) -> float:
        """Floating-point operations of forward and backward per token, in rows of `tokens`.

        As in PaLM (arXiv:2204.02311, appendix B): six for each weight that multiplies (the head does, the
        embedding look-up does not), and the attention products.
        """
        parts = self.parameter_breakdown()
        multiplied = parts["attention"] + parts["feedforward"] + self.vocab_size * self.hidden_size
        return 6.0 * multiplied + 12.0 * self.num_layers * self.hidden_size * tokens

    def parameter_breakdown(self) -> dict[str, int]:
        """Parameters by part: where a model of this shape spends them."""
        width, inner, heads = self.hidden_size, self.ffn_hidden_size, self.num_heads + 2 * self.num_kv_heads
        norms = 2 * width + (width + inner if self.sub_norm else 0)
        parts = {
            "token_embeddings": self.vocab_size * width,
            # qkv_proj and out_proj; then gate, up and down.
            "attention": self.num_layers * (width * heads * self.head_dim + width * width),
            "feedforward": self.num_layers * 3 * width * inner,
            "norms": self.num_layers * norms + width,
        }
        return parts if self.embeddings_tied else {**parts, "lm_head": self.vocab_size * width}


def config_from_dict(values: object, where: str = "meta/config.json, section model,") -> BitNetConfig:
    """The config in a `model` section of config.json. Derived figures are ignored. Raises DataError."""
    return from_json(BitNetConfig, values, where, others=DERIVED)
