"""Shapes of known size that `bitnet cost` offers by name, beside the experiments and their shapes.

Not experiments: nobody trains these on one machine, which is what the command then says.
"""

from __future__ import annotations

from bitnet.nn.config import BitNetConfig

# BitNet b1.58 takes LLaMA's components and vocabulary (arXiv:2402.17764, section 2). The widths of its 1.3B
# and 3B are those of the reproduction that the authors point to (1bitLLM/bitnet_b1_58-xl and -3B, tied: 3.32B
# in all, as published).
LLAMA_VOCABULARY = 32_000
PRESETS = {
    "1B": BitNetConfig(
        vocab_size=LLAMA_VOCABULARY,
        hidden_size=2048,
        num_layers=24,
        num_heads=32,
        num_kv_heads=32,
        ffn_hidden_size=5460,
        max_seq_length=2048,
    ),
    "3B": BitNetConfig(
        vocab_size=LLAMA_VOCABULARY,
        hidden_size=3200,
        num_layers=26,
        num_heads=32,
        num_kv_heads=32,
        ffn_hidden_size=8640,
        max_seq_length=2048,
    ),
    # LLaMA 7B (arXiv:2302.13971, table 2): untied, 6,738,415,616 parameters.
    "7B": BitNetConfig(
        vocab_size=LLAMA_VOCABULARY,
        hidden_size=4096,
        num_layers=32,
        num_heads=32,
        num_kv_heads=32,
        ffn_hidden_size=11_008,
        max_seq_length=2048,
        embeddings_tied=False,
    ),
}
