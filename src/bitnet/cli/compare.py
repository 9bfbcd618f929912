"""`bitnet compare RUN RUN`: the gap between two runs over steps, in numbers and a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from bitnet.cli.flags import RunFlags, parse
from bitnet.cli.registry import config_of_run, find_variant
from bitnet.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class CompareFlags(RunFlags):
    """Show the gap between two runs over their steps, in numbers and a picture."""

    runs: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN RUN")]
    """Two runs: id, directory, experiment name, or latest. The gap is the second minus the first."""
    out: Path | None = None
    """Where to draw; by default compare.png in the first run."""
    force: bool = False
    """Compare although data, order or recipe differ."""
    experiment: Path | None = None
    """Your own experiment file that the run was trained from; what only the run names is not executed."""


def main(arguments: Sequence[str]) -> int:
    """Print the table and write the picture."""
    flags = parse(CompareFlags, arguments, "compare")
    if len(flags.runs) != 2:
        raise ConfigError(
            f"a comparison takes two runs, not {len(flags.runs)}; as in: bitnet compare mine mine_control"
        )
    from bitnet.files import finite
    from bitnet.report.compare import compare, draw, table
    from bitnet.run.layout import find_run

    first, second = (find_run(word, flags.runs_dir).layout for word in flags.runs)
    if first.root.resolve() == second.root.resolve():
        raise ConfigError(f"both words mean the run {first.run_id}; name two different ones")
    out = flags.out or first.root / "compare.png"
    if out.suffix != ".png":
        raise ConfigError(f"--out is {out}; it must end in .png")
    experiment, variant, _ = config_of_run(first, flags.experiment)
    criteria = [criterion.metric for criterion in find_variant(experiment, variant).criteria]
    comparison = compare(first, second, criteria, force=flags.force)
    draw(comparison, out)
    if flags.json:
        print(json.dumps(finite({**comparison.to_json(), "out": str(out)})))
    else:
        print(f"{table(comparison)}\n\nwrote {out}")
    return 0
