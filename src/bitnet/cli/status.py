"""`bitnet status RUN [--watch]`: how far a run is, and how it is doing."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tyro.conf import Positional

from bitnet.cli.flags import RunFlags, parse

WATCH_EVERY_S = 10
BAR_WIDTH = 40


@dataclass(frozen=True, kw_only=True)
class StatusFlags(RunFlags):
    """Flags of `bitnet status`."""

    run: Positional[str] = "latest"
    """Run id, directory, experiment name, or latest."""
    watch: bool = False
    """Show again every 10 seconds until the run ends."""


def main(arguments: Sequence[str]) -> int:
    """Print the state of a run once, or until it ends."""
    flags = parse(StatusFlags, arguments, "status")
    from bitnet.report.progress import run_summary
    from bitnet.run.layout import find_run

    layout = find_run(flags.run, flags.runs_dir).layout
    while True:
        summary = run_summary(layout)
        if flags.json:
            print(json.dumps(summary))
        else:
            print(("\x1b[2J\x1b[H" if flags.watch and sys.stdout.isatty() else "") + page(summary), flush=True)
        if not flags.watch or summary["state"] != "running":
            return 0
        time.sleep(WATCH_EVERY_S)


def page(summary: dict[str, Any]) -> str:
    """A few lines for a person."""
    done, total = summary["step"], summary["total_steps"]
    filled = round(BAR_WIDTH * done / total) if total else 0
    lines = [
        f"{summary['run']}   {summary['experiment']} ({summary['variant']})   {summary['state']}",
        f"[{'#' * filled}{'.' * (BAR_WIDTH - filled)}] {done}/{total}, stage {summary['stage']}",
    ]
    if summary["why"]:
        lines.append(f"why: {summary['why']}")
    if summary["loss"] is not None:
        lines.append(f"loss {summary['loss']:.4f}   lr {summary['lr']:.2e}   {summary['tokens_per_sec']:,.0f} tokens/s")
    if summary["eta_s"] is not None:
        from bitnet.train.progress import duration

        lines.append(f"about {duration(summary['eta_s'])} to go")
    if summary["evaluation"]:
        shown = {key: value for key, value in summary["evaluation"].items() if value is not None and not key.endswith("_cases")}
        lines.append(
            "evaluation: "
            + "  ".join(f"{key} {value:.4f}" if isinstance(value, float) else f"{key} {value}" for key, value in shown.items())
        )
    steps = summary["checkpoints"]
    lines.append("checkpoints: " + (", ".join(str(step) for step in steps) if steps else "none yet"))
    return "\n".join(lines)
