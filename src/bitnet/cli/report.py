"""`bitnet report RUN [RUN]`: one self-contained HTML page about a run, or two runs compared; `--card`: its
model card.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from bitnet.cli.flags import RunFlags, parse
from bitnet.errors import ConfigError
from bitnet.units import megabytes


@dataclass(frozen=True, kw_only=True)
class ReportFlags(RunFlags):
    """Write one self-contained HTML page about a run, or two runs compared."""

    run: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN...")] = ("latest",)
    """One run, or two to compare: run id, directory, experiment name, or latest."""
    card: bool = False
    """Write a model card (Markdown) instead of the page."""
    out: Path | None = None
    """Where to write; by default report.html, comparison.html or MODEL_CARD.md in the first run."""


def main(arguments: Sequence[str]) -> int:
    """Write the page and print where it is."""
    flags = parse(ReportFlags, arguments, "report")
    words = flags.run or ("latest",)
    if len(words) > 2:
        raise ConfigError(
            f"{len(words)} runs were given; a report is about one or two. To overlay more: bitnet plot RUN..."
        )
    if flags.card and len(words) > 1:
        raise ConfigError("a model card is about one run; give one, or leave --card out to compare two")
    from bitnet.report.card import write_card
    from bitnet.report.page import write_page
    from bitnet.run.layout import find_run

    layouts = [find_run(word, flags.runs_dir).layout for word in words]
    if len({layout.root.resolve() for layout in layouts}) < len(layouts):
        raise ConfigError(
            f"{words[0]} and {words[1]} are the same run, {layouts[0].run_id}; name two different ones"
        )
    name = "MODEL_CARD.md" if flags.card else "report.html" if len(layouts) == 1 else "comparison.html"
    out = flags.out or layouts[0].root / name
    endings = (".md",) if flags.card else (".html", ".htm")
    if out.suffix not in endings:
        raise ConfigError(f"--out is {out}; it must end in {endings[0]}")
    runs = [write_card(layouts[0], out)] if flags.card else write_page(layouts, out)
    notes = [f"{run.name}: {note}" for run in runs for note in run.notes]
    size = out.stat().st_size
    if flags.json:
        print(
            json.dumps({"out": str(out), "bytes": size, "runs": [run.name for run in runs], "notes": notes})
        )
    else:
        print("\n".join([*notes, f"wrote {out} ({megabytes(size)})"]))
    return 0
