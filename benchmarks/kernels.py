"""Gop/s of every kernel path at the shapes of the 95M model, beside torch's own products.

    python benchmarks/kernels.py [--rounds 15] [--threads 1 2] [--shapes qkv out gate_up down]

A multiplication and an addition count as two operations. The ways take turns, so that other programs slow
down all of them. The table shows the median of the rounds, and the fastest round, which is nearer to a quiet
machine. One thread is timed by the processor time of its process, which other programs lengthen less, and
several threads by the clock. A round repeats a product for some milliseconds. The C paths are called with
addresses at hand; "ops" is the chosen path through bitnet.kernels.ops, with its checks and its new tensor.
"memory" multiplies one input row by packed weights that fit no cache, and compares its rate in GB/s with that
of a plain sum over float32. "training" compares the passes of training with the torch operations that they
replace.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from bitnet.kernels import library, ops, passes, plain_passes
from bitnet.kernels.arrays import packed_bytes
from bitnet.nn.quantize import ternarize
from bitnet.nn.rotary import rotary_table
from hardware import where, write_results

# (out, in) features of the 95M model
SHAPES = {"qkv": (1536, 768), "out": (768, 768), "gate_up": (6144, 768), "down": (768, 3072)}
ROWS = (1, 8, 512)
ROUND_MS = 4.0
MEMORY_BYTES = 192 << 20  # six times the last cache of the machine that the docs report


Call = Callable[[], object]


def ways(out: int, width: int, rows: int) -> dict[str, Call]:
    """One product of this shape, by each path and by torch."""
    codes = torch.randint(-1, 2, (out, width), dtype=torch.int8)
    x, scale = torch.randn(rows, width), torch.rand(out)
    packed, quantized = ops.pack(codes), ops.quantize_rows(x)
    found = in_c(packed, quantized, scale)
    found["ops"] = lambda: ops.product(packed, quantized, scale)

    weight, turned = codes.float(), codes.t()
    narrow_x, narrow_weight = x.bfloat16(), weight.bfloat16()
    found["torch _int_mm"] = lambda: torch._int_mm(quantized.codes, turned)
    found["torch bf16"] = lambda: narrow_x @ narrow_weight.t()
    found["torch fp32"] = lambda: x @ weight.t()
    return found


def in_c(packed: ops.PackedWeight, rows: ops.QuantizedRows, scale: torch.Tensor) -> dict[str, Call]:
    """The bare C function, on each path of this CPU. ops.product on the same tensors has checked them."""
    y = ops.product(packed, rows, scale)
    here, threads = library.loaded(), torch.get_num_threads()
    if here.library is None:
        return {}
    function = here.library.ternary_product
    data, out, width = packed

    def call(path: str) -> Call:
        sides = data.data_ptr(), out, width, rows.codes.data_ptr(), y.shape[0]
        rest = rows.step.data_ptr(), scale.data_ptr(), y.data_ptr(), threads
        kept = data, rows, scale, y  # as long as their addresses are used
        return lambda: (function(library.PATHS.index(path), *sides, *rest), kept)

    return {path: call(path) for path in here.paths}


def seconds_of(call: Call) -> float:
    """Seconds of one call, from as many calls as fill a round."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    started, count = clock(), 0
    while clock() - started < ROUND_MS / 1e3:
        call()
        count += 1
    return (clock() - started) / count


def in_turns(calls: dict[str, Call], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call in each round, after one more round to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            took = seconds_of(call)
            if number:
                seconds[name].append(took)
    return seconds


def products(shape: str, rows: int, threads: int, rounds: int) -> list[dict[str, Any]]:
    out, width = SHAPES[shape]
    operations = 2 * out * width * rows
    return [
        {
            "shape": shape,
            "out": out,
            "in": width,
            "rows": rows,
            "threads": threads,
            "way": way,
            "gops": operations / statistics.median(seconds) / 1e9,
            "gops_fastest": operations / min(seconds) / 1e9,
            "us": statistics.median(seconds) * 1e6,
        }
        for way, seconds in in_turns(ways(out, width, rows), rounds).items()
    ]


def memory(threads: int, rounds: int) -> list[dict[str, Any]]:
    """One input row times weights that come from memory, in turn with a plain sum over as many bytes."""
    out, width = 8192, 4096
    count = MEMORY_BYTES // packed_bytes(out, width)
    packed = ops.pack(torch.randint(-1, 2, (out, width), dtype=torch.int8))
    copies = [packed._replace(data=packed.data.clone()) for _ in range(count)]
    row, plain = ops.quantize_rows(torch.randn(1, width)), torch.ones(MEMORY_BYTES // 4)
    calls: dict[str, Call] = {
        "ops": lambda: [ops.product(copy, row) for copy in copies],
        "torch sum of float32": plain.sum,
    }
    return [
        {
            "shape": "memory",
            "rows": 1,
            "threads": threads,
            "way": way,
            "gb_per_s": MEMORY_BYTES / statistics.median(seconds) / 1e9,
            "gb_per_s_fastest": MEMORY_BYTES / min(seconds) / 1e9,
        }
        for way, seconds in in_turns(calls, rounds).items()
    ]


def preparing_calls() -> dict[str, tuple[Call, int]]:
    """The work before products: packing weights, and quantizing rows."""
    codes = torch.randint(-1, 2, SHAPES["gate_up"], dtype=torch.int8)
    x, norm = torch.randn(512, 768), torch.ones(768)
    return {
        "pack": (lambda: ops.pack(codes), codes.numel()),
        "pack the transpose": (lambda: ops.pack(codes, transposed=True), codes.numel()),
        "quantize rows": (lambda: ops.quantize_rows(x), x.numel()),
        "norm and quantize rows": (lambda: ops.quantize_normed_rows(x, norm, 1e-5), x.numel()),
    }


def passes_over(
    kind: str, calls: dict[str, tuple[Call, int]], threads: int, rounds: int
) -> list[dict[str, Any]]:
    """Nanoseconds a value of each call, which has so many values."""
    took = in_turns({name: call for name, (call, _) in calls.items()}, rounds)
    return [
        {
            "shape": kind,
            "threads": threads,
            "way": name,
            "ns_per_value": statistics.median(took[name]) / size * 1e9,
            "ns_per_value_fastest": min(took[name]) / size * 1e9,
        }
        for name, (_, size) in calls.items()
    ]


def training_calls() -> dict[str, tuple[Call, int]]:
    """The passes of training at the 95M shape, each followed by the torch operations that it replaces, and
    the number of values that it reads.
    """
    tokens, width, inner, heads, vocab, bf16 = 512, 768, 3072, (12, 6), 32_000, torch.bfloat16
    grad, gate_up, half = (torch.randn(tokens, size) for size in (2 * inner, 2 * inner, inner))
    scale, step, norm = torch.rand(2 * inner), torch.rand(tokens, 1), torch.rand(width)
    x, grad_x = torch.randn(tokens, width), torch.randn(tokens, width)
    inverse, (cos, sin) = torch.rand(tokens, 1), rotary_table(64, tokens, 1e4)
    qkv, weight = torch.randn(1, tokens, 24 * 64), torch.randn(2 * inner, width)
    logits, targets, ones = torch.randn(tokens, vocab), torch.randint(vocab, (tokens,)), torch.ones(tokens)

    def pack_in_steps() -> object:
        codes = ternarize(weight, (inner, inner)).codes
        return ops.pack(codes), ops.pack(codes, transposed=True)

    def softmax_loss() -> object:
        leaf = logits.detach().requires_grad_()
        return torch.autograd.grad(F.cross_entropy(leaf, targets, reduction="sum"), leaf)

    columns, rows = scale * passes.GRADIENT_FACTOR, step.view(-1)
    plain_gradient = plain_passes.quantize_gradient
    pairs: dict[str, tuple[Call, Call, int]] = {
        "gradient to int8, bf16": (
            lambda: passes.quantize_gradient(grad, scale, step, bf16),
            lambda: plain_gradient(grad, None, "silu", columns, rows, bf16),
            grad.numel(),
        ),
        "the same behind a gate": (
            lambda: passes.quantize_gated_gradient(half, gate_up, "silu", scale, step, bf16),
            lambda: plain_gradient(half, gate_up, "silu", columns, rows, bf16),
            grad.numel(),
        ),
        "gate to int8": (
            lambda: passes.quantize_gated_rows(gate_up, "silu"),
            lambda: plain_passes.quantize_gated(gate_up, "silu", None, 0.0),
            grad.numel(),
        ),
        "gradient of the norm": (
            lambda: passes.norm_gradient(grad_x, x, inverse, norm),
            lambda: plain_passes.norm_gradient(grad_x, x, inverse.view(-1), norm),
            x.numel(),
        ),
        "rotary to bf16": (
            lambda: passes.rotary(qkv, cos, sin, *heads, bf16),
            lambda: plain_passes.rotary(qkv, cos, sin, *heads, bf16),
            qkv.numel(),
        ),
        "cross-entropy": (lambda: passes.cross_entropy(logits, targets, ones), softmax_loss, logits.numel()),
        "weight, both ways": (
            lambda: passes.pack_weight(weight, (inner, inner)),
            pack_in_steps,
            weight.numel(),
        ),
    }
    calls = {name: (ours, size) for name, (ours, _, size) in pairs.items()}
    return {**calls, **{f"torch: {name}": (theirs, size) for name, (_, theirs, size) in pairs.items()}}


def shown(row: dict[str, Any]) -> str:
    start = f"{row['threads']} thread(s)  {row['shape']:<10}{row.get('rows', ''):>4}  {row['way']:<31}"
    for key, unit in (("gops", "Gop/s"), ("gb_per_s", "GB/s"), ("ns_per_value", "ns a value")):
        if key in row:
            return f"{start}{row[key]:9.2f} {unit}, fastest {row[key + '_fastest']:9.2f}"
    raise AssertionError(row)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    args = parser.parse_args()
    print(where(), library.describe(), sep="\n")
    rows: list[dict[str, Any]] = []
    for threads in args.threads:
        torch.set_num_threads(threads)
        for found in (
            *(products(shape, count, threads, args.rounds) for shape in args.shapes for count in ROWS),
            memory(threads, min(args.rounds, 5)),
            passes_over("preparing", preparing_calls(), threads, args.rounds),
            passes_over("training", training_calls(), threads, min(args.rounds, 7)),
        ):
            rows += found
            print(*(shown(row) for row in found), sep="\n", flush=True)
    print(f"wrote {write_results('kernels', rows)}")


if __name__ == "__main__":
    main()
