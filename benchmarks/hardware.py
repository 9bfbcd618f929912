"""Where a figure was measured: commit, processor, torch, threads. Every benchmark writes this beside its
numbers.
"""

from __future__ import annotations

import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from bitnet.run.provenance import cpu_model

RESULTS = Path(__file__).parent / "results"


def where() -> dict[str, Any]:
    """commit, hardware, torch, threads, date."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    )
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "commit": commit.stdout.strip() or None,
        "hardware": gpu or cpu_model(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def write_results(name: str, rows: list[dict[str, Any]]) -> Path:
    """benchmarks/results/<name>.json with the rows and where they were measured."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"where": where(), "rows": rows}, indent=1) + "\n", encoding="utf-8")
    return path
