"""Shapes of published size that `bitnet cost` offers by name, beside those of the experiments.

They are not experiments, because nobody trains them on one machine.
"""

from __future__ import annotations

from bitnet.nn.config import BitNetConfig


def _llama(hidden_size: int, num_layers: int, ffn_hidden_size: int, *, tied: bool = True) -> BitNetConfig:
    """LLaMA's components and vocabulary, as BitNet b1.58 has them (arXiv:2402.17764, section 2)."""
    return BitNetConfig(
        vocab_size=32_000,
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=32,
        num_kv_heads=32,
        ffn_hidden_size=ffn_hidden_size,
        max_seq_length=2048,
        embeddings_tied=tied,
    )


# The widths of 1.3B and 3B are those of the reproduction that the authors point to (1bitLLM/bitnet_b1_58-xl
# and -3B, tied: 3.32B in all, as published). LLaMA 7B (arXiv:2302.13971, table 2) is untied and has
# 6,738,415,616 parameters.
PRESETS = {
    "1B": _llama(2048, 24, 5460),
    "3B": _llama(3200, 26, 8640),
    "7B": _llama(4096, 32, 11_008, tied=False),
}
