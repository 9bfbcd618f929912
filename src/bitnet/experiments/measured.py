"""Measured results of the variants, from measured.json, which `benchmarks/record.py` writes from a finished run."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any


@cache
def measured() -> list[dict[str, Any]]:
    """All recorded results, newest last."""
    path = Path(__file__).with_name("measured.json")
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    return rows


def measured_result(name: str, variant: str) -> str | None:
    """The newest result of a variant in one line, its control's left aside, or None."""
    found = [row for row in measured() if (row["experiment"], row["variant"], row["weights"]) == (name, variant, "ternary")]
    if not found:
        return None
    row = found[-1]
    return f"{row['result']} ({row['tokens']:,} tokens, {row['hardware']}, {row['minutes']:.1f} min, commit {row['commit']})"
