"""`bitnet experiments`: what can be trained."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from bitnet.cli.flags import JsonFlags, parse
from bitnet.cli.registry import experiment_names, find_experiment


class ExperimentsFlags(JsonFlags):
    """List what can be trained: every variant of every experiment, with what it measured."""


def main(arguments: Sequence[str]) -> int:
    """List every variant of every experiment."""
    flags = parse(ExperimentsFlags, arguments, "experiments")
    rows = all_variants()
    if flags.json:
        print(json.dumps(rows))
        return 0
    print(f"{'experiment':<14}{'variant':<12}{'parameters':>12}{'tokens':>16}  about")
    for row in rows:
        print(
            f"{row['name']:<14}{row['variant']:<12}{row['parameters']:>12,}{row['tokens']:>16,}  "
            f"{row['about']}"
        )
        if row["measured"]:
            print(f"{'':<56}measured: {row['measured']}")
    return 0


def all_variants() -> list[dict[str, Any]]:
    """name, variant, parameters, tokens, about, measured of each."""
    from bitnet.experiments.measured import measured_result

    return [
        {
            "name": name,
            "variant": variant,
            "parameters": settings.config.model.total_params,
            "tokens": settings.config.train.total_tokens,
            "about": settings.about,
            "measured": measured_result(name, variant),
        }
        for name in experiment_names()
        for variant, settings in find_experiment(name).variants.items()
    ]
