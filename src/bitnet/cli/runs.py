"""`bitnet runs`: the runs there are."""

from __future__ import annotations

import json
from collections.abc import Sequence

from bitnet.cli.flags import RunFlags, parse
from bitnet.errors import NotFoundError
from bitnet.terminal import one_line


class RunsFlags(RunFlags):
    """List the runs, oldest first."""


def main(arguments: Sequence[str]) -> int:
    """One line per run, oldest first."""
    from bitnet.report.progress import run_summary
    from bitnet.run.layout import list_runs

    flags = parse(RunsFlags, arguments, "runs")
    if flags.runs_dir != RunFlags.runs_dir and not flags.runs_dir.is_dir():
        raise NotFoundError(
            f"there is no folder {flags.runs_dir}; give the folder of your runs with --runs-dir"
        )
    rows = [run_summary(layout) for layout in list_runs(flags.runs_dir)]
    if flags.json:
        print(json.dumps(rows))
        return 0
    if not rows:
        print(f"no runs in {flags.runs_dir} yet; start one with: bitnet train arithmetic")
        return 0
    print(f"{'run':<46}{'variant':<12}{'state':<10}{'step':>14}{'loss':>9}")
    for row in rows:
        step = f"{row['step']}/{row['total_steps']}"
        loss = f"{row['loss']:.4f}" if row["loss"] is not None else "-"
        print(one_line(f"{row['run']:<46}{row['variant']:<12}{row['state']:<10}{step:>14}{loss:>9}"))
    for row in rows:
        if row["state"] == "damaged":
            print(one_line(f"{row['run']}: {row['why']}"))
    return 0
