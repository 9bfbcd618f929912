"""The figures of a benchmark as a file: its rows, and where they were measured."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from bitnet.run.provenance import cpu_model

RESULTS = Path(__file__).parent / "results"


def where() -> dict[str, Any]:
    """Commit, hardware, torch, threads and date."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "commit": commit.stdout.strip() or None,
        "hardware": gpu or cpu_model(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def place_of(where: Mapping[str, Any]) -> str:
    """Where figures were measured, as pages say it."""
    return (
        f"{where['hardware']}, {where['threads']} threads, torch {where['torch']}, commit {where['commit']}, "
        f"{where['date']}"
    )


def write_results(name: str, rows: list[dict[str, Any]], **about: Any) -> Path:
    """Write the rows and where they were measured to benchmarks/results/<name>.json.

    about: entries of `where` that this process cannot know, such as the threads of the processes it started.
    """
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    content = {"where": {**where(), **about}, "rows": rows}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


def read_results(name: str) -> dict[str, Any]:
    """The content of benchmarks/results/<name>.json, or {} if it was not measured yet."""
    path = RESULTS / f"{name}.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
