"""Write the measured tables into README.md and docs/experiments.md, between their markers.

    python benchmarks/readme.py           rewrite the tables from what the benchmarks recorded and the code says
    python benchmarks/readme.py --check   exit with 1 if a page does not hold exactly these tables

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

from bitnet.cli.catalogue import experiment_names, find_experiment
from bitnet.experiments.measured import measured
from hardware import RESULTS

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "docs" / "experiments.md")
KINDS = ("exact_match", "exact_match_add", "exact_match_sub", "exact_match_mul", "exact_match_div")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def results_table() -> str:
    """One row per recorded run: size, cost, result, and where it was measured."""
    head = ["experiment", "variant", "parameters", "tokens", "result", "loss, first and last 100", "minutes", "commit"]
    rows = []
    for row in measured():
        budget = "" if row["full_budget"] else f" of {row['budget'] / 1e6:.0f}M"
        name = row["variant"] + ("" if row["weights"] == "ternary" else f", weights {row['weights']}")
        losses = f"{row['first_loss']:.2f}, {row['last_loss']:.3f} (on {row['loss_on']})"
        size = [f"{row['parameters']:,}", f"{row['tokens'] / 1e6:.1f}M{budget}"]
        rows.append([row["experiment"], name, *size, f"{row['result']}: {row['verdict']}", losses, f"{row['minutes']:.1f}", row["commit"]])
    places = sorted({f"{row['hardware']}, torch {row['torch']}" for row in measured()})
    return table(head, rows) + "\n\nMeasured on: " + "; ".join(places) + "."


def operators_table() -> str:
    """Exact match of the arithmetic runs per operator."""
    head = ["variant", "tokens", "exact match", "+", "-", "*", "//"]
    rows = []
    for row in measured():
        if row["experiment"] == "arithmetic":
            shares = [f"{100 * row['metrics'][kind]:.2f}%" if kind in row["metrics"] else "" for kind in KINDS]
            rows.append([row["variant"], f"{row['tokens'] / 1e6:.1f}M", *shares])
    return table(head, rows)


def variants_table() -> str:
    """Every variant as the code has it, with its criteria."""
    head = ["experiment", "variant", "parameters", "tokens", "updates", "optimizer", "success", "about"]
    rows = []
    for name in experiment_names():
        for variant, settings in find_experiment(name).variants.items():
            config, criteria = settings.config, ", ".join(str(criterion) for criterion in settings.criteria)
            size = [f"{config.model.total_params:,}", f"{config.train.total_tokens:,}", f"{config.train.total_steps:,}"]
            rows.append([name, variant, *size, config.train.optimizer, criteria, settings.about])
    return table(head, rows)


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


BLOCKS = {"results": results_table, "operators": operators_table, "variants": variants_table, "speed": speed_table}


def with_tables(text: str) -> str:
    """A page's text with every block between markers replaced."""
    for name, block in BLOCKS.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)", re.DOTALL)
        text = pattern.sub(lambda match, block=block: f"{match[1]}{block()}{match[2]}", text)  # type: ignore[misc]
    return text


def main() -> int:
    stale = [page for page in PAGES if with_tables(page.read_text(encoding="utf-8")) != page.read_text(encoding="utf-8")]
    if "--check" in sys.argv[1:]:
        print("; ".join(f"{page.name} differs; run: python benchmarks/readme.py" for page in stale) or "all pages are up to date")
        return int(bool(stale))
    for page in stale:
        page.write_text(with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
