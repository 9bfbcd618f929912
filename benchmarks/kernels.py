"""Gop/s of every kernel path at the shapes of the 95M model, beside torch's own products.

    python benchmarks/kernels.py [--rounds 15] [--threads 1 2] [--shapes qkv out gate_up down]

A multiplication and an addition count as two operations. The ways take turns, so that other programs slow
down all of them. The table shows the median of the rounds, and the fastest round, which is nearer to a quiet
machine. One thread is timed by the processor time of its process, which other programs lengthen less, and
several threads by the clock. A round repeats a product for some milliseconds. The C paths are called with
addresses at hand; "ops" is the chosen path through bitnet.kernels.ops, with its checks and its new tensor.
"memory" multiplies one input row by packed weights that fit no cache, and compares its rate in GB/s with that
of a plain sum over float32.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from bitnet.kernels import library, ops
from bitnet.kernels.arrays import packed_bytes
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


def preparing(threads: int, rounds: int) -> list[dict[str, Any]]:
    """The work before products: packing weights, and quantizing rows."""
    codes = torch.randint(-1, 2, SHAPES["gate_up"], dtype=torch.int8)
    x, norm = torch.randn(512, 768), torch.ones(768)
    calls: dict[str, tuple[Call, int]] = {
        "pack": (lambda: ops.pack(codes), codes.numel()),
        "pack the transpose": (lambda: ops.pack(codes, transposed=True), codes.numel()),
        "quantize rows": (lambda: ops.quantize_rows(x), x.numel()),
        "norm and quantize rows": (lambda: ops.quantize_normed_rows(x, norm, 1e-5), x.numel()),
    }
    took = in_turns({name: call for name, (call, _) in calls.items()}, rounds)
    return [
        {
            "shape": "preparing",
            "threads": threads,
            "way": name,
            "ns_per_value": statistics.median(took[name]) / size * 1e9,
            "ns_per_value_fastest": min(took[name]) / size * 1e9,
        }
        for name, (_, size) in calls.items()
    ]


def shown(row: dict[str, Any]) -> str:
    start = f"{row['threads']} thread(s)  {row['shape']:<10}{row.get('rows', ''):>4}  {row['way']:<24}"
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
            preparing(threads, args.rounds),
        ):
            rows += found
            print(*(shown(row) for row in found), sep="\n", flush=True)
    print(f"wrote {write_results('kernels', rows)}")


if __name__ == "__main__":
    main()
