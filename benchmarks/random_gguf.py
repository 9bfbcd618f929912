"""A GGUF file of the 95M shape with random TQ2_0 weights and a Q6_K head, for llama-bench.

    python benchmarks/random_gguf.py model-tq2_0.gguf

Speed does not depend on the values. Needs the package gguf, of llama.cpp's source or from the package index:

    PYTHONPATH=llama_cpp_python-*/vendor/llama.cpp/gguf-py
"""

from __future__ import annotations

import importlib
import sys

import numpy as np

from bitnet.experiments.shapes import BASELINE
from bitnet.kernels.arrays import Array

BLOCK = 256  # weights of a block of either format
TQ2_0_BYTES, Q6_K_BYTES = 66, 210  # of a block: codes, and an fp16 scale at its end


def random_blocks(rng: np.random.Generator, out: int, width: int, size: int) -> Array:
    """uint8 (out, bytes of a row) with scales of 1/32."""
    blocks = rng.integers(0, 0xAA, (out, width // BLOCK, size), dtype=np.uint8)
    blocks[..., -2:] = np.array([1 / 32], np.float16).view(np.uint8)
    return blocks.reshape(out, -1)


def main() -> None:
    gguf = importlib.import_module("gguf")
    config, rng = BASELINE, np.random.default_rng(0)
    width, inner, key = config.hidden_size, config.ffn_hidden_size, config.num_kv_heads * config.head_dim
    writer = gguf.GGUFWriter(sys.argv[1], "llama")
    writer.add_block_count(config.num_layers)
    writer.add_context_length(config.max_seq_length)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")

    kinds = gguf.GGMLQuantizationType
    head = random_blocks(rng, config.vocab_size, width, Q6_K_BYTES)
    writer.add_tensor("token_embd.weight", head, raw_dtype=kinds.Q6_K)
    writer.add_tensor("output_norm.weight", np.ones(width, np.float32))
    sides = {
        "attn_q": (width, width),
        "attn_k": (key, width),
        "attn_v": (key, width),
        "attn_output": (width, width),
        "ffn_gate": (inner, width),
        "ffn_up": (inner, width),
        "ffn_down": (width, inner),
    }
    for layer in range(config.num_layers):
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(width, np.float32))
        for name, (out, inputs) in sides.items():
            blocks = random_blocks(rng, out, inputs, TQ2_0_BYTES)
            writer.add_tensor(f"blk.{layer}.{name}.weight", blocks, raw_dtype=kinds.TQ2_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
