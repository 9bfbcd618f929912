"""Record a finished run as the measured result of its variant: what `bitnet experiments` and the README show.

    python benchmarks/record.py RUN [RUN ...]

Judges each run, reads its hardware and times, appends to src/bitnet/experiments/measured.json, and prints the table.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from bitnet.cli.catalogue import config_of_run, find_variant
from bitnet.cli.evaluate import judge
from bitnet.experiments import measured
from bitnet.run.layout import find_run, read_json
from bitnet.run.metrics import read_lines
from bitnet.trained import load


def row_of(word: str) -> dict[str, Any]:
    """One measured result."""
    layout = find_run(word, Path("runs")).layout
    trained = load(layout.root)
    experiment, variant, config = config_of_run(layout)
    result = judge(trained, experiment.open(config), find_variant(experiment, variant).criteria)
    scalars = read_lines(layout.scalars).rows
    facts = read_json(layout.provenance)
    full = config.train.total_tokens >= find_variant(experiment, variant).config.train.total_tokens
    return {
        "experiment": experiment.name,
        "variant": variant,
        "weights": config.model.weights,
        "parameters": config.model.total_params,
        "tokens": scalars[-1]["tokens_seen"],
        "full_budget": full,
        "budget": find_variant(experiment, variant).config.train.total_tokens,
        "loss_on": getattr(config.data, "loss_on", "all"),
        "hardware": facts["gpu_model"] or f"{facts['cpu_model']}, {facts['threads']} threads",
        "torch": facts["torch_version"],
        "minutes": sum(row["step_time_ms"] for row in scalars) / 60e3,
        "commit": (facts["git_commit"] or "")[:7],
        "first_loss": scalars[0]["loss"],
        "last_loss": sum(row["loss"] for row in scalars[-100:]) / len(scalars[-100:]),
        "verdict": result["verdict"],
        "result": ", ".join(
            f"{key} {value:.4f}" for key, value in result["metrics"].items() if key.startswith("exact_match") and "cases" not in key
        ),
        "metrics": result["metrics"],
    }


def main() -> None:
    path = Path(measured.__file__).with_name("measured.json")
    rows = [*measured.measured(), *(row_of(word) for word in sys.argv[1:])]
    latest = {(row["experiment"], row["variant"], row["weights"], row["tokens"]): row for row in rows}
    path.write_text(json.dumps(list(latest.values()), indent=1) + "\n", encoding="utf-8")
    for row in latest.values():
        print(f"{row['experiment']} {row['variant']}: {row['result']}, loss {row['first_loss']:.2f} -> {row['last_loss']:.2f}")


if __name__ == "__main__":
    main()
