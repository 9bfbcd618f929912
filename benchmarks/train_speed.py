"""Speed of one update of ours and of its peers at the same shapes, beside the bare matrix products.

    python benchmarks/train_speed.py [--shapes small arithmetic] [--ways ours* "dense bf16*"] [--threads 2]

Ways of ours are the choices of `train.product`, `train.precision` and so on, and "ours auto", which leaves
all of them to the program. The peers have the same transformer around another linear layer: "dense" an
ordinary one, "transformers" the AutoBitLinear of Hugging Face transformers, which quantizes as it trains.
Updates run in the loop of training. Each way runs in a process of its own, so that its peak memory is its
own; the ways take turns, round by round, and the table gives medians. The first two updates, which compile,
do not count.

"limit" is the share of an update that its matrix products alone take, in the formats that the way really
uses: 1 would be an update that does nothing else. Attention is not in it.

Peers: AutoBitLinear (bitnet.py in transformers/integrations), with one scale for a fused projection.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from fnmatch import fnmatch
from typing import Any

from hardware import where, write_results
from train_ways import SHAPES, WAYS

BESIDE = ("dense bf16 compiled", "transformers bf16")
"""The ways that the others are compared with."""
USUAL = ("ours auto", "ours auto compiled", "dense ????", "dense ???? compiled", "transformers*")
USUAL_SHAPES = ("small", "arithmetic", "tinystories", "95m")


def ways_of(args: argparse.Namespace) -> list[str]:
    """The ways that a pattern names."""
    return [name for name in WAYS if any(fnmatch(name, pattern) for pattern in args.ways)]


def in_turns(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every shape and way of every round, each measured in a process of its own."""
    deadline = time.perf_counter() + args.minutes * 60 if args.minutes else None
    for turn, shape, way in itertools.product(range(args.rounds), args.shapes, ways_of(args)):
        words = ["--one", shape, way, "--repeats", args.repeats, "--device", args.device]
        words += ["--rows", args.rows] if args.rows else []
        left = deadline - time.perf_counter() if deadline else None
        row = in_a_process([sys.executable, __file__, *map(str, words)], args.threads, left)
        if isinstance(row, str):
            print(f"{shape}, {way}: {row}", file=sys.stderr)
            continue
        print(f"{turn + 1}/{args.rounds} {shape} {way}: {row['update_ms']:.0f} ms", file=sys.stderr)
        yield row


def in_a_process(command: list[str], threads: int, seconds: float | None) -> dict[str, Any] | str:
    """The last line that a command prints, which is JSON; or why there is none."""
    if seconds is not None and seconds <= 0:
        return "not begun, the time is over"
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return "stopped, the time is over"
    if done.returncode:
        return f"exit {done.returncode}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Updates of one way in this process: medians of wall and processor time, and the peak of memory."""
    import torch

    from train_ways import bare_products_ms, begin

    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    shape, way = args.one
    run = begin(shape, way, device, updates=2 + args.repeats, rows=args.rows)
    clocks = []
    for _ in run.updates:
        clocks.append((time.perf_counter(), time.process_time()))
    wall, processor = (
        statistics.median(after[clock] - before[clock] for before, after in itertools.pairwise(clocks[1:]))
        for clock in (0, 1)
    )
    if device.type == "cuda":
        peak = float(torch.cuda.max_memory_allocated())
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
    products_ms, products_processor_ms = bare_products_ms(run, repeats=max(args.repeats, 3))
    return {
        "shape": shape,
        "way": way,
        "formats": run.formats,
        "rows": run.rows,
        "tokens": run.tokens,
        "update_ms": wall * 1e3,
        "processor_ms": processor * 1e3,
        "products_ms": products_ms,
        "products_processor_ms": products_processor_ms,
        "flops": run.flops,
        "peak_flops": run.peak_flops,
        "peak_gb": peak / 1e9,
    }


def medians(rows: list[dict[str, Any]], clock: str) -> list[dict[str, Any]]:
    """One row for each shape and way, with what follows from its times."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["shape"], row["way"]), []).append(row)
    found = [{key: _median([row[key] for row in some]) for key in some[0]} for some in groups.values()]
    for row in found:
        spent, products = (
            (row["update_ms"], row["products_ms"])
            if clock == "wall"
            else (row["processor_ms"], row["products_processor_ms"])
        )
        row["clock"] = clock
        row["tokens_per_sec"] = row["rows"] * row["tokens"] / spent * 1e3
        row["limit"] = products / spent
        row["mfu"] = row["flops"] / spent * 1e3 / row["peak_flops"] if row["peak_flops"] else None
    speeds = {(row["shape"], row["way"]): row["tokens_per_sec"] for row in found}
    for row in found:
        for peer in BESIDE:
            other = speeds.get((row["shape"], peer))
            row[f"times {peer}"] = row["tokens_per_sec"] / other if other else None
    return found


def _median(values: list[Any]) -> Any:
    return statistics.median(values) if isinstance(values[0], float) else values[0]


def show(rows: list[dict[str, Any]]) -> None:
    """The table. The columns of the peers say how many times faster a way is than they are."""
    head = ("shape", "way", "formats", "tokens/s", "limit", "x dense", "x transf.", "MFU", "peak GB")
    print("{:<12}{:<45}{:<42}{:>9}{:>7}{:>9}{:>10}{:>7}{:>9}".format(*head))
    for row in rows:
        ratios = [row[f"times {peer}"] for peer in BESIDE]
        shown = [f"{ratio:.2f}" if ratio else "-" for ratio in ratios]
        mfu = f"{row['mfu']:.0%}" if row["mfu"] else "-"
        print(
            f"{row['shape']:<12}{row['way']:<45}{row['formats']:<42}{row['tokens_per_sec']:>9,.0f}"
            f"{row['limit']:>7.0%}{shown[0]:>9}{shown[1]:>10}{mfu:>7}{row['peak_gb']:>9.2f}"
        )


def main() -> int:
    """Measure all ways in turns and write the table, or one way for the process above."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3, help="updates that count, in each process")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=USUAL_SHAPES)
    parser.add_argument("--ways", nargs="+", default=USUAL, help="patterns; '*' measures every way")
    parser.add_argument("--list", action="store_true", help="print the names of the ways")
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", cores)))
    shared = "processor time, for one thread on a machine that others use too"
    parser.add_argument("--clock", choices=("wall", "processor"), default="wall", help=shared)
    parser.add_argument("--rows", type=int, help="rows of a micro-batch, instead of the shape's own")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--minutes", type=float, help="begin nothing after this time, and show what there is")
    parser.add_argument("--try-out", action="store_true", help="print the table and write no results")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args)))
        return 0
    if args.list:
        print("\n".join(WAYS))
        return 0
    rows = medians(list(in_turns(args)), args.clock)
    place = {**where(), "threads": args.threads}
    print(place)
    show(rows)
    if rows and not args.try_out:
        parts = [args.device, *str(place["hardware"]).split()[:2]]
        parts += [] if tuple(args.shapes) == USUAL_SHAPES else args.shapes
        name = "".join(letter for letter in "_".join(parts).lower() if letter.isalnum() or letter == "_")
        print(f"wrote {write_results(f'train_speed_{name}', rows, threads=args.threads)}")
    measured = {(row["shape"], row["way"]) for row in rows}
    return 0 if len(measured) == len(args.shapes) * len(ways_of(args)) else 1


if __name__ == "__main__":
    sys.exit(main())
