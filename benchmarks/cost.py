"""How good are the estimates of `bitnet cost`? Its figures of the quick arithmetic run beside that run.

    python benchmarks/cost.py    estimate, train, compare (4 minutes)

Exit code 1 means that the estimate is off by more than 20% in time or 10% in memory.

The commands run in processes of their own: the estimate, the run, and the estimate again, because a shared
machine changes its speed within minutes. The mean of both estimates is judged. Time is that of the whole
training command, start and evaluation included. Memory is the largest resident size that the system saw.
This file also makes the tables of docs/costs.md, which benchmarks/readme.py writes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

from bitnet.cli.cost import ROWS, train_of_shape
from bitnet.cost.devices import load_devices
from bitnet.cost.estimate import estimate
from bitnet.cost.memory import Numerics, head_ledger, layer_ledger
from bitnet.cost.page import fits
from bitnet.cost.presets import PRESETS
from bitnet.experiments.shapes import BASELINE, SHAPES
from bitnet.train.config import TrainConfig
from bitnet.units import byte_size, duration, scaled
from blocks import table
from hardware import place_of, read_results, where, write_results

RUN = ["arithmetic", "--variant", "quick", "--device", "cpu"]
TIME_TOLERANCE, MEMORY_TOLERANCE = 0.2, 0.1
# the plan of the 95M baseline: 60,000 updates of 32 x 1,024
PLAN = TrainConfig(seq_len=1024, batch_size=32, total_steps=60_000, warmup_steps=375)


def bitnet(*words: str) -> tuple[str, float, int]:
    """Standard output, seconds, and largest resident size in bytes of one command."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "bitnet", *words], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    out = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"bitnet {' '.join(words)} ended with status {status}")
    return out, time.perf_counter() - started, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def estimated() -> dict[str, Any]:
    """The figures of `bitnet cost --measure`."""
    found: dict[str, Any] = json.loads(bitnet("cost", *RUN, "--measure", "--json")[0].splitlines()[-1])
    return found


def compare() -> list[dict[str, Any]]:
    """Estimated and real time and memory, and their quotients."""
    before = estimated()
    with tempfile.TemporaryDirectory() as runs:
        _, seconds, peak = bitnet("train", *RUN, "--runs-dir", runs)
    after = estimated()
    times = [said["measured"]["seconds"] for said in (before, after)]
    pairs = [
        ("time, from 10 s of measuring before", "s", times[0], seconds, None),
        ("time, from 10 s of measuring after", "s", times[1], seconds, None),
        ("time, mean of both", "s", sum(times) / 2, seconds, TIME_TOLERANCE),
        ("largest resident size", "GB", before["process_bytes"]["cpu"] / 1e9, peak / 1e9, MEMORY_TOLERANCE),
    ]
    names = ("figure", "unit", "estimate", "real", "tolerance")
    rows: list[dict[str, Any]] = [dict(zip(names, pair, strict=True)) for pair in pairs]
    for row in rows:
        row["off"] = row["estimate"] / row["real"] - 1
    return rows


def checked_table() -> str:
    """The last comparison."""
    recorded = read_results("cost")
    if not recorded:
        return "Not measured yet: python benchmarks/cost.py"
    head = ["quick arithmetic run", "estimate", "real", "off", "promised"]
    rows = [
        [
            row["figure"],
            f"{row['estimate']:.3g} {row['unit']}",
            f"{row['real']:.3g} {row['unit']}",
            f"{row['off']:+.1%}",
            "" if row["tolerance"] is None else f"within {row['tolerance']:.0%}",
        ]
        for row in recorded["rows"]
    ]
    place = place_of(recorded["where"])
    return f"{table(head, rows)}\n\nMeasured on: {place}, by `python benchmarks/cost.py`."


def shapes_table() -> str:
    """One row for each shape, without any measurement."""
    head = ["shape", "parameters", "tokens at 20 each", "FLOP in all", "packed", "checkpoint"]
    head += [f"card, {ROWS} rows", "8 GB", "24 GB", "80 GB"]
    rows = []
    for name, model in {**SHAPES, **PRESETS}.items():
        found = estimate(model, train_of_shape(model, []), [])
        cards = [fits(one) for one in found.fits if one.gb in (8, 24, 80)]
        rows.append(
            [
                name,
                f"{found.parameters:,}",
                scaled(found.tokens_at_20).strip(),
                scaled(found.tokens_at_20 * found.flops_per_token).strip(),
                byte_size(found.packed_bytes),
                byte_size(found.checkpoint_bytes),
                byte_size(found.process_bytes["cuda"]),
                *cards,
            ]
        )
    return table(head, rows)


def devices_table() -> str:
    """The 95M baseline on every device of the table."""
    head = ["device", "TFLOP/s", "rate", "time", "USD", "price", "batch of 32 rows"]
    rows = []
    for row in estimate(BASELINE, PLAN, load_devices()).devices:
        device = row.device
        rate = f"{device.flops_per_second / 1e12:.3g}"
        rows.append(
            [
                device.name,
                rate,
                f"{'measured' if device.measured else 'ASSUMED'}: {device.basis}",
                duration(row.seconds),
                "-" if row.usd is None else f"{row.usd:,.2f}",
                device.price_basis,
                "-" if row.fit is None else fits(row.fit),
            ]
        )
    return table(head, rows)


def ledger_table() -> str:
    """Bytes for each token that one layer of the baseline, and its head, keep."""
    ways = {
        "GPU: int8, bf16": (BASELINE, Numerics(device="cuda", product="int8", bf16=True)),
        "CPU: int8, float32": (BASELINE, Numerics(device="cpu", product="int8", bf16=False)),
    }
    columns = [
        (layer_ledger(model, numerics), head_ledger(model, numerics)) for model, numerics in ways.values()
    ]
    rows = [[name, *(f"{layer[name]:,}" for layer, _ in columns)] for name in columns[0][0]]
    rows.append(["**one layer**", *(f"{sum(layer.values()):,}" for layer, _ in columns)])
    rows += [[f"{name} (once)", *(f"{head[name]:,}" for _, head in columns)] for name in columns[0][1]]
    total = [BASELINE.num_layers * sum(layer.values()) + sum(head.values()) for layer, head in columns]
    return table(
        ["kept for each token", *ways], [*rows, ["**8 layers and head**", *(f"{value:,}" for value in total)]]
    )


def main() -> int:
    rows = compare()
    print(where())
    for row in rows:
        print(
            f"{row['figure']:<38}estimate {row['estimate']:.3f}  real {row['real']:.3f} {row['unit']}  off "
            f"{row['off']:+.1%}"
        )
    print(f"wrote {write_results('cost', rows)}")
    return int(any(row["tolerance"] is not None and abs(row["off"]) > row["tolerance"] for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
