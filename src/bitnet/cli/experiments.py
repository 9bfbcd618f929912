"""`bitnet experiments`: what can be trained."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bitnet.cli.flags import parse
from bitnet.cli.registry import experiment_names, find_experiment


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Flags of `bitnet experiments`."""

    json: bool = False
    """Print a list of objects."""


def main(arguments: Sequence[str]) -> int:
    """List every variant of every experiment."""
    flags = parse(Flags, arguments, "experiments")
    rows = catalogue()
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


def catalogue() -> list[dict[str, Any]]:
    """name, variant, parameters, tokens, about, measured for each."""
    from bitnet.experiments.measured import measured_result

    rows: list[dict[str, Any]] = []
    for name in experiment_names():
        for variant, settings in find_experiment(name).variants.items():
            parameters, tokens = settings.config.model.total_params, settings.config.train.total_tokens
            result = measured_result(name, variant)
            rows.append(
                {
                    "name": name,
                    "variant": variant,
                    "parameters": parameters,
                    "tokens": tokens,
                    "about": settings.about,
                    "measured": result,
                }
            )
    return rows
