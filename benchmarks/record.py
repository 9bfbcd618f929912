"""Record a finished run as the measured result of its variant: what `bitnet experiments` and the README show.

    python benchmarks/record.py RUN [RUN ...]

Judges each run, or takes what `bitnet evaluate` found at its last step, reads its hardware and times, appends to
src/bitnet/experiments/measured.json, and prints the table. A row that its variant has outgrown (another size, or a smaller
budget than the run had) is dropped, and said.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from bitnet.cli.catalogue import config_of_run, find_experiment, find_variant
from bitnet.cli.evaluate import figure, judge
from bitnet.experiments import measured
from bitnet.experiments.bitnut_sft import ConversationData
from bitnet.experiments.real_text import TextData
from bitnet.files import read_json
from bitnet.run.layout import RunLayout, find_run
from bitnet.run.metrics import read_lines
from bitnet.train.config import RunConfig
from bitnet.train.recipe import Experiment
from bitnet.trained import load


def row_of(word: str) -> dict[str, Any]:
    """One measured result."""
    layout = find_run(word, Path("runs")).layout
    experiment, variant, config = config_of_run(layout)
    result = verdict_of(layout, experiment, variant, config)
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
        "loss_on": loss_on(config),
        "hardware": facts["gpu_model"] or f"{facts['cpu_model']}, {facts['threads']} threads",
        "torch": facts["torch_version"],
        "minutes": sum(row["step_time_ms"] for row in scalars) / 60e3,
        "commit": (facts["git_commit"] or "")[:7] + ("+" if facts["git_dirty"] else ""),  # +: with changes not yet committed
        "first_loss": scalars[0]["loss"],
        "last_loss": sum(row["loss"] for row in scalars[-100:]) / len(scalars[-100:]),
        "verdict": result["verdict"],
        "result": ", ".join(
            f"{key} {shown(key, result['metrics'][key])}" for key in telling(experiment, config) if key in result["metrics"]
        ),
        "metrics": result["metrics"],
    }


def loss_on(config: RunConfig) -> str:
    """What the training loss is a mean over."""
    if isinstance(config.data, ConversationData):
        return "pairs" if config.train.objective == "preference" else "answers"
    return getattr(config.data, "loss_on", "all")


def verdict_of(layout: RunLayout, experiment: Experiment, variant: str, config: RunConfig) -> dict[str, Any]:
    """The judgement of the run's last checkpoint."""
    if layout.verdict.is_file():
        result = read_json(layout.verdict)
        if result["step"] == config.train.total_steps:
            return result
    return judge(load(layout.root), experiment.open(config), find_variant(experiment, variant).criteria)


def telling(experiment: Experiment, config: RunConfig) -> list[str]:
    """The metrics that the criteria of any variant name, each once, in their order; on real text bits per byte first."""
    named = (criterion.metric for variant in experiment.variants.values() for criterion in variant.criteria)
    return list(dict.fromkeys([*(["bits_per_byte"] if isinstance(config.data, TextData) else []), *named]))


def shown(name: str, value: float) -> str:
    """Counts without decimals, shares with four, and more where those would say 1 for what is not quite 1."""
    return f"{value:.0f}" if name.startswith(("losses", "draws", "wins", "illegal")) else figure(value)


def is_outgrown(row: dict[str, Any]) -> bool:
    """Whether the variant is no longer what this row measured."""
    config = find_variant(find_experiment(row["experiment"]), row["variant"]).config
    return bool(row["parameters"] != config.model.total_params or row["tokens"] > config.train.total_tokens)


def main() -> None:
    path = Path(measured.__file__).with_name("measured.json")
    rows = [*measured.measured(), *(row_of(word) for word in sys.argv[1:])]
    for row in filter(is_outgrown, rows):
        print(f"dropped: {row['experiment']} {row['variant']} with {row['parameters']:,} parameters and {row['tokens']:,} tokens")
    rows = [row for row in rows if not is_outgrown(row)]
    latest = {(row["experiment"], row["variant"], row["weights"], row["tokens"]): row for row in rows}
    path.write_text(json.dumps(list(latest.values()), indent=1) + "\n", encoding="utf-8")
    for row in latest.values():
        print(f"{row['experiment']} {row['variant']}: {row['result']}, loss {row['first_loss']:.2f} -> {row['last_loss']:.2f}")


if __name__ == "__main__":
    main()
