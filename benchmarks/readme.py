"""Write the measured tables into README.md, between their markers.

    python benchmarks/readme.py           rewrite the tables from what the benchmarks recorded
    python benchmarks/readme.py --check   exit with 1 if README.md does not hold exactly these tables

Results of experiments come from src/bitnet/experiments/measured.json (benchmarks/record.py), speeds from
benchmarks/results/train_speed_*.json (benchmarks/train_speed.py). No figure is typed by hand.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bitnet.experiments.measured import measured
from hardware import RESULTS

README = Path(__file__).parents[1] / "README.md"
KINDS = ("exact_match", "exact_match_add", "exact_match_sub", "exact_match_mul", "exact_match_div")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def experiments_table() -> str:
    """One row per recorded run: exact match per operator, loss at both ends, cost, and where it was measured."""
    head = ["variant", "parameters", "tokens", "exact match", "+", "-", "*", "//", "loss, first and last 100", "minutes", "commit"]
    rows = []
    for row in measured():
        shares = [f"{100 * row['metrics'][kind]:.2f}%" if kind in row["metrics"] else "" for kind in KINDS]
        budget = "" if row["full_budget"] else f" of {row['budget'] / 1e6:.0f}M"
        name = row["variant"] + ("" if row["weights"] == "ternary" else f", weights {row['weights']}")
        losses = f"{row['first_loss']:.2f}, {row['last_loss']:.3f} (on {row['loss_on']})"
        rows.append(
            [name, f"{row['parameters']:,}", f"{row['tokens'] / 1e6:.1f}M{budget}", *shares, losses, f"{row['minutes']:.1f}", row["commit"]]
        )
    places = sorted({f"{row['hardware']}, torch {row['torch']}" for row in measured()})
    return table(head, rows) + "\n\nMeasured on: " + "; ".join(places) + "."


def speed_table() -> str:
    """One row per shape and way to multiply, for each device that was measured."""
    parts = []
    for path in sorted(RESULTS.glob("train_speed_*.json")):
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        head = ["shape", "way", "tokens/s", "update ms", "bare products ms", "peak GB"]
        rows = [
            [f"{row['shape']} {row['rows']}x{row['tokens']}", row["way"], f"{row['tokens_per_sec']:,.0f}", f"{row['update_ms']:,.0f}",
             f"{row['products_ms']:,.0f}", f"{row['peak_gb']:.2f}"]
            for row in values["rows"]
        ]  # fmt: skip
        where = values["where"]
        place = f"{where['hardware']}, {where['threads']} threads, torch {where['torch']}, commit {where['commit']}, {where['date']}"
        parts.append(f"{table(head, rows)}\n\nMeasured on: {place}.")
    return "\n\n".join(parts)


def with_tables(text: str) -> str:
    """The README's text with both blocks replaced."""
    for name, block in (("results", experiments_table()), ("speed", speed_table())):
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)", re.DOTALL)
        assert pattern.search(text), f"README.md has no <!-- {name} --> block"
        text = pattern.sub(lambda match, block=block: f"{match[1]}{block}{match[2]}", text)  # type: ignore[misc]
    return text


def main() -> int:
    text = README.read_text(encoding="utf-8")
    wanted = with_tables(text)
    if "--check" in sys.argv[1:]:
        print("README.md is up to date" if wanted == text else "README.md differs; run: python benchmarks/readme.py")
        return int(wanted != text)
    README.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
