"""Record finished runs as measured results of their variants, which `bitnet experiments` and the README show.

    python benchmarks/record.py RUN [RUN ...] [--note "beside other work"]

It judges each run, or takes what `bitnet evaluate` found at its last step, and reads its hardware, times and
data. It writes one row for each (variant, weights, budget, data set, seed) to
src/bitnet/experiments/measured.json and prints the results. Every row is judged again by the present criteria
of its variant. A row that no longer measures its variant (other settings, a smaller budget, or a criterion on
a metric that the row lacks) is dropped with a message.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bitnet.cli.evaluate import judge
from bitnet.cli.registry import config_of_run, find_experiment, find_variant
from bitnet.experiments import measured
from bitnet.experiments.measured import Row
from bitnet.files import read_json
from bitnet.run.layout import RunLayout, find_run
from bitnet.run.metrics import read_lines
from bitnet.train.config import RunConfig
from bitnet.train.experiment import Experiment
from bitnet.trained_model import load

UNITS = ("documents", "conversations", "examples")
"""Keys of a dataset fingerprint that say how much data there was."""
NOT_SETTINGS = set(
    """
    model.weights model.activations train.product train.seed train.total_steps train.warmup_steps
    train.stage1_end train.start_from data.dataset data.data data.validation data.revision data.column
    data.split data.cache_dir data.allow_repeat data.second_data train.compile train.log_every
    train.eval_every train.eval_cases train.sample_every train.probe_every train.checkpoint_every
    train.keep_last train.keep_every train.max_dumps
""".split()
)
"""What may differ between a variant and a run that measures it: seed, budget and control, which a row names;
where the data is; how the run is watched, and how fast it is, which change no weight."""
FOUND_BY_FROM = {"data.tokenizer", "data.conversations", "data.other"}
"""Paths that a run with --from takes from the run it begins from, and from --data."""


def row_of(word: str, note: str | None) -> Row:
    """One measured run."""
    layout = find_run(word, Path("runs")).layout
    experiment, variant, config = config_of_run(layout)
    result = verdict_of(layout, experiment, variant, config)
    scalars = read_lines(layout.scalars).rows
    facts = read_json(layout.provenance)
    budget = find_variant(experiment, variant).config.train.total_tokens
    threads = f"{facts['threads']} thread{'s' if facts['threads'] > 1 else ''}"
    return {
        "experiment": experiment.name,
        "variant": variant,
        "weights": config.model.weights,
        "seed": config.train.seed,
        "dataset": dataset_of(layout, config),
        "settings": settings_of(config),
        "parameters": config.model.total_params,
        "tokens": scalars[-1]["tokens_seen"],
        "full_budget": config.train.total_tokens >= budget,
        "budget": budget,
        "loss_on": loss_on(experiment, config),
        "hardware": facts["gpu_model"] or f"{facts['cpu_model']}, {threads}",
        "torch": facts["torch_version"],
        "note": note,
        "minutes": sum(row["step_time_ms"] for row in scalars) / 60e3,
        # +: with changes that were not committed
        "commit": (facts["git_commit"] or "")[:7] + ("+" if facts["git_dirty"] else ""),
        "first_loss": scalars[0]["loss"],
        "last_loss": sum(row["loss"] for row in scalars[-100:]) / len(scalars[-100:]),
        "verdict": result["verdict"],
        "shown": [key for key in telling(experiment) if key in result["metrics"]],
        "metrics": result["metrics"],
    }


def dataset_of(layout: RunLayout, config: RunConfig) -> dict[str, Any]:
    """The data that the run really read, from its fingerprint: name, count and unit.

    A single file is named with its folder, a generated table `generated`.
    """
    found = read_json(layout.fingerprint)
    name = "generated" if found.get("examples") else found["dataset_name"]
    files = [Path(one) for one in getattr(config.data, "data", ())]
    if len(files) == 1 and files[0].name == name:
        name = "/".join(files[0].parts[-2:])
    unit = next((unit for unit in UNITS if found.get(unit)), None)
    return {"name": name, "count": found[unit] if unit else None, "unit": unit}


def settings_of(config: RunConfig) -> dict[str, Any]:
    """The settings that differ from their defaults, as `train.batch_size: 256`, without NOT_SETTINGS."""
    left_out = NOT_SETTINGS | (FOUND_BY_FROM if config.train.start_from else set())
    found: dict[str, Any] = {}
    for section in ("model", "train", "data"):
        values = getattr(config, section)
        for field in dataclasses.fields(values):
            name, value = f"{section}.{field.name}", getattr(values, field.name)
            if name not in left_out and value != field.default:
                found[name] = list(value) if isinstance(value, tuple) else value
    return found


def loss_on(experiment: Experiment, config: RunConfig) -> str:
    """What the training loss is a mean over. Fine-tuning has no setting for it."""
    if config.train.objective == "preference":
        return "pairs"
    return "answers" if experiment.starts_from_a_run else getattr(config.data, "loss_on", "all")


def verdict_of(layout: RunLayout, experiment: Experiment, variant: str, config: RunConfig) -> dict[str, Any]:
    """The judgement of the run's last checkpoint, measured again if a criterion was added since."""
    criteria = find_variant(experiment, variant).criteria
    if layout.verdict.is_file():
        result = read_json(layout.verdict)
        if (
            result["step"] == config.train.total_steps
            and {one.metric for one in criteria} <= result["metrics"].keys()
        ):
            return result
    return judge(load(layout.root), experiment.open(config), criteria)


def telling(experiment: Experiment) -> list[str]:
    """The experiment's headline metrics, then those of the criteria of all variants, each once."""
    named = (criterion.metric for variant in experiment.variants.values() for criterion in variant.criteria)
    return list(dict.fromkeys([*experiment.headline, *named]))


def why_outgrown(row: Row) -> str | None:
    """How the variant now differs from what this row measured, or None."""
    variant = find_variant(find_experiment(row["experiment"]), row["variant"])
    now = settings_of(variant.config)
    if row["parameters"] != variant.config.model.total_params:
        return f"{row['parameters']:,} parameters"
    if row["budget"] != variant.config.train.total_tokens:
        return f"a budget of {row['budget']:,} tokens"
    keys = sorted((row["settings"].keys() | now.keys()) - NOT_SETTINGS)
    other = [key for key in keys if row["settings"].get(key) != now.get(key)]
    if other:
        return f"other settings: {', '.join(other)}"
    lacking = {one.metric for one in variant.criteria} - row["metrics"].keys()
    return f"not judged by {', '.join(sorted(lacking))}" if lacking else None


def judged_now(row: Row) -> Row:
    """The row with the verdict that the present criteria give."""
    criteria = find_variant(find_experiment(row["experiment"]), row["variant"]).criteria
    passed = all(one.met(row["metrics"][one.metric]) for one in criteria)
    return {**row, "verdict": "PASS" if passed else "FAIL"}


def kept(rows: list[Row]) -> Iterator[Row]:
    """The rows that still measure their variant, with their present verdict; of one seed the newest.

    A row without the amount of its data gives way to one that has it.
    """
    same = ("experiment", "variant", "weights", "tokens")
    known = {tuple(row[key] for key in same) for row in rows if row["dataset"]["count"]}
    latest: dict[str, Row] = {}
    for row in rows:
        outgrown = why_outgrown(row)
        if not row["dataset"]["count"] and tuple(row[key] for key in same) in known:
            outgrown = "its data is not known as well as that of a newer row"
        if outgrown:
            print(f"dropped: {row['experiment']} {row['variant']}, seed {row['seed']}: {outgrown}")
            continue
        kind = [row[key] for key in (*same, "dataset", "seed")]
        latest[json.dumps(kind, sort_keys=True)] = judged_now(row)
    yield from latest.values()


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Record finished runs as measured results of their variants."
    )
    parser.add_argument(
        "runs", nargs="*", metavar="RUN", help="run id, run directory, experiment name, or latest"
    )
    parser.add_argument(
        "--note", help="what a reader should know about the measurement, as: beside other work"
    )
    arguments = parser.parse_args()
    path = Path(measured.__file__).with_name("measured.json")
    rows = list(kept([*measured.measured(), *(row_of(word, arguments.note) for word in arguments.runs)]))
    path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    measured.measured.cache_clear()
    for result in measured.results():
        row = result.newest
        print(
            f"{row['experiment']} {row['variant']}, weights {row['weights']}, {result.data}: "
            f"{result.figures}: {result.verdict}"
        )


if __name__ == "__main__":
    main()
