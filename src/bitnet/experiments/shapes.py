"""The five model shapes of the plan, and a small one, declared once. Parameter counts follow from them and
are tested. An experiment takes its shape from here.
"""

from __future__ import annotations

from bitnet.nn.config import BitNetConfig

ARITHMETIC = BitNetConfig(
    vocab_size=32,
    hidden_size=256,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    ffn_hidden_size=768,
    max_seq_length=64,
)
TICTACTOE = BitNetConfig(
    vocab_size=32,
    hidden_size=384,
    num_layers=6,
    num_heads=6,
    num_kv_heads=3,
    ffn_hidden_size=1152,
    max_seq_length=128,
)
TINYSTORIES = BitNetConfig(
    vocab_size=2048,
    hidden_size=384,
    num_layers=6,
    num_heads=8,
    num_kv_heads=4,
    ffn_hidden_size=1152,
    max_seq_length=256,
)
BASELINE = BitNetConfig(
    vocab_size=32_000,
    hidden_size=768,
    num_layers=8,
    num_heads=12,
    num_kv_heads=6,
    ffn_hidden_size=3072,
    max_seq_length=1024,
)
BITNUT = BitNetConfig(
    vocab_size=32_768,
    hidden_size=768,
    num_layers=12,
    num_heads=12,
    num_kv_heads=4,
    ffn_hidden_size=2304,
    max_seq_length=1024,
    rope_theta=500_000.0,
    embeddings_tied=False,
    activation="relu2",
    sub_norm=True,
)
SMALL = BitNetConfig(
    vocab_size=32,
    hidden_size=128,
    num_layers=4,
    num_heads=2,
    num_kv_heads=1,
    ffn_hidden_size=384,
    max_seq_length=64,
)
"""Ours, for tasks over characters that two CPU cores train in minutes."""

SHAPES = {
    "arithmetic": ARITHMETIC,
    "tictactoe": TICTACTOE,
    "tinystories": TINYSTORIES,
    "baseline": BASELINE,
    "bitnut": BITNUT,
}
