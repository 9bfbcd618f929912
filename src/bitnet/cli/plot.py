"""`bitnet plot RUN...`: curves as PNG."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from bitnet.cli.flags import RunFlags, parse
from bitnet.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class PlotFlags(RunFlags):
    """Draw the curves of one run, or of several overlaid, as PNG."""

    run: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN...")] = ("latest",)
    """One run, or several to overlay."""
    out: Path | None = None
    """Where to write; by default plot.png in the (first) run."""
    x: Literal["steps", "tokens", "time"] = "steps"
    """What the horizontal axis counts."""


def main(arguments: Sequence[str]) -> int:
    """Draw the curves and print where the picture is."""
    flags = parse(PlotFlags, arguments, "plot")
    from bitnet.report.plots import plot_runs
    from bitnet.run.layout import find_run

    layouts = [find_run(word, flags.runs_dir).layout for word in flags.run or ("latest",)]
    out = flags.out or layouts[0].root / "plot.png"
    if out.suffix != ".png":
        raise ConfigError(f"--out is {out}; it must end in .png")
    skipped = plot_runs(layouts, out, flags.x)
    if skipped:
        print(f"{skipped} unreadable lines of metrics were skipped", file=sys.stderr)
    print(json.dumps({"out": str(out)}) if flags.json else f"wrote {out}")
    return 0
