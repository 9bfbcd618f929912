"""`bitnet status RUN [--watch]`: how far a run is, and how it is doing."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro
from tyro.conf import Positional

from bitnet.cli.flags import RunFlags, parse
from bitnet.terminal import one_line, send
from bitnet.units import duration

WATCH_EVERY_S = 10
BAR_WIDTH = 40


@dataclass(frozen=True, kw_only=True)
class StatusFlags(RunFlags):
    """Show how far a run is, and how it is doing."""

    run: Annotated[Positional[str], tyro.conf.arg(metavar="RUN")] = "latest"
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
            if flags.watch and sys.stdout.isatty():
                send(sys.stdout, "\x1b[2J\x1b[H")
            print(page(summary), flush=True)
        if not flags.watch or summary["state"] != "running":
            return 0
        time.sleep(WATCH_EVERY_S)


def page(summary: dict[str, Any]) -> str:
    """A few lines for a person; what was not recorded yet is left out."""
    done, total = summary["step"], summary["total_steps"]
    filled = min(round(BAR_WIDTH * done / total), BAR_WIDTH) if total else 0
    lines = [
        one_line(f"{summary['run']}   {summary['experiment']} ({summary['variant']})   {summary['state']}"),
        f"[{'#' * filled}{'.' * (BAR_WIDTH - filled)}] {done}/{total}, stage {summary['stage']}",
    ]
    if summary["why"]:
        lines.append(f"why          {one_line(str(summary['why']))}")
    if summary["eta_s"] is not None:
        lines.append(f"to go        about {duration(summary['eta_s'])}")
    lines += [f"{name:<12} {one_line(text)}" for name, text in _details(summary) if text]
    return "\n".join(lines)


def _details(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """Label and text of every line below the bar; an empty text is not shown."""
    last = {key: summary[key] for key in ("loss", "lr", "grad_norm", "tokens_per_sec")}
    evaluation = {
        key: value for key, value in (summary["evaluation"] or {}).items() if not key.endswith("_cases")
    }
    skipped = summary["unreadable_lines"]
    return [
        ("training", _pairs(last)),
        ("evaluation", _pairs(evaluation)),
        ("ternary", _pairs(summary["ternary"])),
        *(
            ("sample", f"step {one['step']}, {one['mode']}: {one['generated_text']!r}")
            for one in summary["samples"]
        ),
        ("anomalies", ", ".join(summary["anomalies"]) or "none"),
        ("checkpoints", ", ".join(str(step) for step in summary["checkpoints"]) or "none yet"),
        (
            "unreadable",
            f"{skipped} lines of metrics at the ends of the files were skipped" if skipped else "",
        ),
    ]


def _pairs(values: dict[str, Any]) -> str:
    shown = ((key, value) for key, value in values.items() if value is not None)
    return "  ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in shown
    )
