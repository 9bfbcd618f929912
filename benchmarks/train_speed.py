"""Speed of one update at three shapes, for every way to multiply, beside the bare matrix products.

    python benchmarks/train_speed.py [--rounds 5] [--shapes arithmetic tinystories 95m]

Each way runs in a process of its own, so that its peak memory is its own. The ways take turns, round by
round, and the table gives medians. "products" is the time of the matrix products of the update alone, on this
machine and in the same number formats.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from bitnet.allocator import keep_freed_memory
from bitnet.data.stream import Batch
from bitnet.experiments.shapes import ARITHMETIC, BASELINE, TINYSTORIES
from bitnet.nn.config import BitNetConfig
from bitnet.nn.transformer import BitNetTransformer
from bitnet.optim.optimizer import OptimizerConfig, Optimizers
from bitnet.optim.schedule import Rates
from bitnet.train.loop import autocast
from bitnet.train.objective import summed_loss
from hardware import where, write_results

SHAPES = {
    "arithmetic": (ARITHMETIC, 32, 64),
    "tinystories": (TINYSTORIES, 16, 256),
    "95m": (BASELINE, 2, 1024),
}
WAYS = ("ternary int8", "ternary float", "full fp32", "full bf16")
ADAMW = OptimizerConfig(kind="adamw", adam_beta1=0.9, adam_beta2=0.95, muon_momentum=0.95, muon_lr_ratio=1.0)


def median_ms(action: Callable[[], Any], repeats: int, device: torch.device) -> float:
    """Median wall time of an action after one warm-up, in ms."""
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append((time.perf_counter() - started) * 1e3)
    return statistics.median(times[1:])


def build(config: BitNetConfig, way: str, device: torch.device) -> BitNetTransformer:
    """A fresh model that multiplies this way."""
    full = way.startswith("full")
    config = dataclasses.replace(
        config, weights="full" if full else "ternary", activations="full" if full else "int8"
    )
    model = BitNetTransformer(config).to(device)
    gradients = torch.bfloat16 if device.type == "cuda" else torch.float32
    model.set_product("int8" if way == "ternary int8" else "float", gradients)
    return model


def measure(shape: str, way: str, device: torch.device, repeats: int) -> dict[str, Any]:
    """One update (forward, backward, clip, AdamW) of one way, and its bare products."""
    torch.manual_seed(0)
    keep_freed_memory()
    config, rows, tokens = SHAPES[shape]
    model = build(config, way, device)
    optimizers = Optimizers(model, ADAMW)
    ids = torch.randint(0, config.vocab_size, (rows, tokens), device=device)
    batch = Batch(ids, ids, torch.ones_like(ids, dtype=torch.bool))
    bf16 = way == "full bf16" or (device.type == "cuda" and way != "full fp32")

    def update() -> None:
        with autocast(device, bf16):
            loss = summed_loss(model(batch.input_ids), batch) / ids.numel()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizers.step(Rates(1e-4, 0.1))

    update_ms = median_ms(update, repeats, device)
    peak = (
        torch.cuda.max_memory_allocated()
        if device.type == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    products_ms = bare_products_ms(model, rows * tokens, way, bf16, device, repeats)
    return {
        "shape": shape,
        "way": way,
        "rows": rows,
        "tokens": tokens,
        "update_ms": update_ms,
        "products_ms": products_ms,
        "tokens_per_sec": rows * tokens / update_ms * 1e3,
        "peak_gb": peak / 1e9,
    }


def bare_products_ms(
    model: BitNetTransformer, tokens: int, way: str, bf16: bool, device: torch.device, repeats: int
) -> float:
    """The forward and both gradient products of every linear layer and the head, nothing else."""
    dtype = torch.bfloat16 if bf16 else torch.float32
    total = 0.0
    head = model.lm_head.weight
    sides = {(layer.out_features, layer.in_features): 0 for layer in model.bit_linears().values()}
    for layer in model.bit_linears().values():
        sides[layer.out_features, layer.in_features] += 1
    for (out, width), count in sides.items():
        total += count * one_product_ms(tokens, width, out, way == "ternary int8", dtype, device, repeats)
    return total + one_product_ms(tokens, head.shape[1], head.shape[0], False, dtype, device, repeats)


def one_product_ms(
    tokens: int, width: int, out: int, int8: bool, dtype: torch.dtype, device: torch.device, repeats: int
) -> float:
    """y = x W^T, dx = dy W, dW = dy^T x."""
    x, weight, grad = (
        torch.randn(shape, device=device).to(dtype)
        for shape in ((tokens, width), (out, width), (tokens, out))
    )
    codes = torch.randint(-127, 127, (tokens, width), device=device, dtype=torch.int8)
    ternary = torch.randint(-1, 2, (out, width), device=device, dtype=torch.int8)

    def run() -> None:
        _ = torch._int_mm(codes, ternary.t()) if int8 else x @ weight.t()
        _ = grad @ weight
        _ = grad.t() @ x

    return median_ms(run, repeats, device)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one[0], args.one[1], torch.device(args.device), args.repeats)))
        return
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for _ in range(args.rounds):
        for shape in args.shapes:
            for way in WAYS:
                command = [sys.executable, __file__, "--one", shape, way]
                command += ["--repeats", str(args.repeats), "--device", args.device]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                runs.setdefault((shape, way), []).append(json.loads(done.stdout.splitlines()[-1]))
    rows = [
        {k: statistics.median(r[k] for r in some) if isinstance(v, float) else v for k, v in some[0].items()}
        for some in runs.values()
    ]
    print(where())
    print(f"{'shape':<13}{'way':<15}{'tokens/s':>10}{'update ms':>11}{'products ms':>13}{'peak GB':>9}")
    for row in rows:
        print(
            f"{row['shape']:<13}{row['way']:<15}{row['tokens_per_sec']:>10,.0f}{row['update_ms']:>11.0f}"
            f"{row['products_ms']:>13.0f}{row['peak_gb']:>9.2f}"
        )
    print(f"wrote {write_results('train_speed_' + args.device, rows)}")


if __name__ == "__main__":
    main()
