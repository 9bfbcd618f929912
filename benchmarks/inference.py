"""Tokens per second of packed inference, beside plain PyTorch, llama.cpp, and what the memory allows.

    python benchmarks/inference.py
    python benchmarks/inference.py --llama-bench llama.cpp/build/bin/llama-bench --gguf 95m-tq2_0.gguf

Weights are random: their values do not change how long a product takes. Ternary codes and heads are made
packed, so that a model of two billion weights needs no float copy. All ways of a shape take turns in one
process, with the memory rate measured in the same rounds; medians. Decoding writes 64 tokens after a prompt
of one. llama.cpp runs after the rounds of its shape, as its own process; its head is Q6_K.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bitnet.engine.decoder import PackedDecoder
from bitnet.engine.matrix import DenseFormat, Format, Matrix, data_bytes, scale_bytes
from bitnet.engine.weights import LayerWeights, Weights
from bitnet.experiments.shapes import BASELINE, TINYSTORIES
from bitnet.kernels import library
from bitnet.kernels.arrays import Array, aligned_bytes
from bitnet.kernels.rates import memory_gb_per_s
from bitnet.nn.bitlinear import has_fast_int8
from bitnet.nn.config import BitNetConfig
from bitnet.nn.transformer import BitNetTransformer
from hardware import where, write_results

PROMPT, NEW, ROWS = 512, 64, 8
SHAPES = {
    "tinystories": TINYSTORIES,
    "95M": BASELINE,
    # the published BitNet b1.58 shapes: arXiv:2402.17764, table 4 (700M), and BitNet-b1.58-2B-4T
    "700M": BitNetConfig(
        vocab_size=32_000,
        hidden_size=1536,
        num_layers=24,
        num_heads=16,
        num_kv_heads=16,
        ffn_hidden_size=4096,
        max_seq_length=2048,
    ),
    "2B": BitNetConfig(
        vocab_size=128_256,
        hidden_size=2560,
        num_layers=30,
        num_heads=20,
        num_kv_heads=5,
        ffn_hidden_size=6912,
        max_seq_length=4096,
        activation="relu2",
        sub_norm=True,
    ),
}
PYTORCH = ("tinystories", "95M")  # the larger ones would need their float weights
MOST_ROUNDS = 3  # of the larger ones, so that a run ends within minutes
FOUR_CODES = np.array([b for b in range(256) if all(b >> 2 * p & 3 != 3 for p in range(4))], np.uint8)
"""Bytes of a packed matrix: four times two bits, of which 3 is no code."""
Call = Callable[[], int]
"""Computes something, and returns how many tokens that were."""


def empty_matrix(form: Format, out: int, width: int) -> Matrix:
    none: Array = np.empty(0, np.uint8)
    matrix = Matrix(form, out, width, none, none, int8_inputs=form in ("ternary", "int8", "int4"))
    return matrix._replace(data=aligned_bytes(data_bytes(matrix)))


def random_ternary(rng: np.random.Generator, out: int, width: int) -> Matrix:
    """Bytes of four codes each: no code is ever a weight of its own."""
    matrix = empty_matrix("ternary", out, width)
    matrix.data[:] = FOUR_CODES[rng.integers(0, len(FOUR_CODES), matrix.data.size, dtype=np.uint8)]
    return matrix._replace(scale=np.full(out, 1 / width, np.float32))


def random_head(rng: np.random.Generator, form: DenseFormat, out: int, width: int) -> Matrix:
    matrix = empty_matrix(form, out, width)
    matrix.data[:] = rng.integers(1, 256, matrix.data.size, dtype=np.uint8)
    one = (np.uint16, 0x3C00) if form == "int4" else (np.float32, 0.01)  # 0x3C00: 2^-7 as bfloat16
    scale = np.full(scale_bytes(matrix) // np.dtype(one[0]).itemsize, one[1], one[0])
    return matrix._replace(scale=scale)


def random_weights(config: BitNetConfig, heads: Sequence[DenseFormat]) -> dict[DenseFormat, Weights]:
    """One set of layers, with each of the heads."""
    rng = np.random.default_rng(0)
    width, inner, key = config.hidden_size, config.ffn_hidden_size, config.num_kv_heads * config.head_dim
    none: Array = np.empty(0, np.float32)
    ones, wide = np.ones(width, np.float32), np.ones(inner, np.float32)
    layers = tuple(
        LayerWeights(
            attn_norm=ones,
            ffn_norm=ones,
            attn_sub_norm=ones if config.sub_norm else none,
            ffn_sub_norm=wide if config.sub_norm else none,
            qkv=random_ternary(rng, width + 2 * key, width),
            attn_out=random_ternary(rng, width, width),
            gate_up=random_ternary(rng, 2 * inner, width),
            down=random_ternary(rng, width, inner),
        )
        for _ in range(config.num_layers)
    )
    table = random_head(rng, "int8", config.vocab_size, width)
    made: dict[DenseFormat, Matrix] = {
        form: random_head(rng, form, config.vocab_size, width) for form in heads if form != "int8"
    }
    return {form: Weights(table, made.get(form, table), ones, layers) for form in heads}


def packed_calls(decoder: PackedDecoder, head: str) -> dict[str, Call]:
    rows = decoder.new_rows(ROWS, PROMPT if decoder.config.max_seq_length >= PROMPT else None)
    prompt = list(range(min(PROMPT, decoder.config.max_seq_length)))

    def prefill() -> int:
        rows.take_back(0, 0)
        rows.read({0: prompt})
        return len(prompt)

    def decode(count: int) -> int:
        for row in range(count):
            rows.take_back(row, 0)
            rows.read({row: [1]})
        for _ in range(NEW):
            rows.read({row: [5] for row in range(count)})
        return count * NEW

    return {
        f"packed {head}: prefill": prefill,
        f"packed {head}: decode": lambda: decode(1),
        f"packed {head}: decode {ROWS} rows": lambda: decode(ROWS),
    }


def torch_calls(config: BitNetConfig) -> dict[str, Call]:
    model = BitNetTransformer(config)
    model.set_product("int8" if has_fast_int8(torch.device("cpu")) else "float")
    length = min(PROMPT, config.max_seq_length)
    prompt, one = torch.arange(length).unsqueeze(0), torch.ones(1, 1, dtype=torch.int64)

    @torch.no_grad()
    def prefill() -> int:
        hidden = model.hidden(prompt, model.new_cache(1, length))
        model.lm_head(hidden[:, -1])
        return length

    @torch.no_grad()
    def decode() -> int:
        cache = model.new_cache(1, NEW + 1)
        for _ in range(NEW):
            model(one, cache)
        return NEW

    return {"PyTorch: prefill": prefill, "PyTorch: decode": decode}


def weight_bytes(weights: Weights) -> int:
    """What one token has to read: every matrix, and of the embeddings as good as nothing."""
    head = weights.head.data.nbytes + weights.head.scale.nbytes
    layers = (m for layer in weights.layers for m in (layer.qkv, layer.attn_out, layer.gate_up, layer.down))
    return head + sum(matrix.data.nbytes + matrix.scale.nbytes for matrix in layers)


def llama_rows(program: Path, gguf: Path, threads: int) -> Iterator[dict[str, Any]]:
    """What llama-bench says of a file: prefill of 512 tokens, and decoding."""
    command = [
        str(program),
        "-m",
        str(gguf),
        "-p",
        str(PROMPT),
        "-n",
        str(NEW),
        "-t",
        str(threads),
        "-o",
        "json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for row in json.loads(done.stdout):
        what = "prefill" if row["n_prompt"] else "decode"
        yield {"way": f"llama.cpp {row['model_type']}: {what}", "tokens_per_sec": row["avg_ts"]}


def measured(shape: str, threads: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Every way of one shape, taking turns."""
    config = SHAPES[shape]
    packs = random_weights(config, args.heads)
    rounds = args.rounds if shape in PYTORCH else min(args.rounds, MOST_ROUNDS)
    calls: dict[str, Call] = {}
    for head, weights in packs.items():
        calls |= packed_calls(PackedDecoder(config, weights, threads=threads), head)
    if shape in PYTORCH:
        calls |= torch_calls(config)

    rates: dict[str, list[float]] = {name: [] for name in calls}
    memory = []
    for number in range(rounds + 1):
        memory.append(memory_gb_per_s(threads))
        for name, call in calls.items():
            start = time.perf_counter()
            tokens = call()
            if number:
                rates[name].append(tokens / (time.perf_counter() - start))

    gb_per_s = statistics.median(memory)
    limits = {head: gb_per_s * 1e9 / weight_bytes(weights) for head, weights in packs.items()}
    rows = [
        {
            "way": name,
            "tokens_per_sec": statistics.median(found),
            "fastest": max(found),
            "memory_limit": next((limits[h] for h in limits if name == f"packed {h}: decode"), None),
        }
        for name, found in rates.items()
    ]
    if args.llama_bench and shape == args.gguf_shape:
        rows += llama_rows(args.llama_bench, args.gguf, threads)
    return [{"shape": shape, "threads": threads, "memory_gb_per_s": gb_per_s, **row} for row in rows]


def shown(row: dict[str, Any]) -> str:
    line = (
        f"{row['threads']} thread(s)  {row['shape']:<12}{row['way']:<30}{row['tokens_per_sec']:9.1f} tokens/s"
    )
    fastest = f", fastest {row['fastest']:9.1f}" if "fastest" in row else ""
    limit = row.get("memory_limit")
    return line + fastest + (f", the memory allows {limit:.0f}" if limit else "")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--heads", nargs="+", choices=("int8", "int4"), default=["int8", "int4"])
    parser.add_argument("--llama-bench", type=Path)
    parser.add_argument("--gguf", type=Path, help="a file of the shape --gguf-shape")
    parser.add_argument("--gguf-shape", choices=SHAPES, default="95M")
    args = parser.parse_args()
    print(where(), library.describe(), sep="\n")
    rows: list[dict[str, Any]] = []
    for threads in args.threads:
        torch.set_num_threads(threads)
        for shape in args.shapes:
            found = measured(shape, threads, args)
            rows += found
            print(f"memory {found[0]['memory_gb_per_s']:.1f} GB/s")
            print(*(shown(row) for row in found), sep="\n", flush=True)
    print(f"wrote {write_results('inference', rows)}")


if __name__ == "__main__":
    main()
