"""Everything in a run directory, read leniently for people to look at. Draws nothing and judges nothing.

A file that is missing, half-written or foreign leaves its field empty, and `notes` says what was skipped.
Numeric columns are float64 arrays in the order of steps, with NaN where a row has no number.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitnet.errors import BitnetError, DataError
from bitnet.files import open_regular, read_json
from bitnet.report.progress import run_summary
from bitnet.run.layout import RunLayout
from bitnet.run.manifest import read_config
from bitnet.run.metrics import read_lines

Column = NDArray[np.float64]
Columns = dict[str, Column]

SAMPLE_STEPS = 12  # steps shown per prompt and mode, spread evenly, first and last included
SAMPLE_PROMPTS = 12
TEXT_LIMIT = 800  # characters of one sample or setting that a page shows
README_LIMIT = 4000
ANOMALY_LIMIT = 50
LARGEST = 1e37  # pictures are drawn from 32-bit floats

_ANOMALY = re.compile(r"step_(\d+)_(.+)")
_COLUMN = re.compile(r"[\w./+-]{1,80}")  # names without a meaning of their own in a plot
_SAMPLE_FIGURES = ("mean_entropy", "max_repetition", "unique_tokens", "total_tokens")


@dataclass(frozen=True)
class Sample:
    """One generated text. figures: those that were recorded."""

    step: int
    prompt: str
    mode: str
    text: str
    figures: dict[str, float]


@dataclass(frozen=True)
class DumpPage:
    """One debug dump: its folder, the text of its README.md, and the names of its other files."""

    step: int
    event: str
    folder: str
    text: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class Recorded:
    """One run, as its files describe it."""

    name: str
    root: Path
    summary: dict[str, Any]
    config: dict[str, Any]
    provenance: dict[str, Any]
    fingerprint: dict[str, Any]
    verdict: dict[str, Any]
    diagnosis: dict[str, Any]
    scalars: Columns
    evaluations: Columns
    probes: Columns
    samples: list[Sample]
    sample_steps: int
    """Steps that have samples; at most SAMPLE_STEPS of them are in `samples`."""
    anomalies: list[DumpPage]
    notes: list[str] = field(default_factory=list)

    @property
    def boundary(self) -> float | None:
        """m, the last update of stage 1."""
        return number(self.section("training").get("stage1_end"))

    def section(self, name: str) -> dict[str, Any]:
        """`model`, `training` or `data` of the configuration."""
        value = self.config.get(name)
        return value if isinstance(value, dict) else {}


def read_run(layout: RunLayout) -> Recorded:
    """Read a run. Never raises because of a file's content."""
    notes: list[str] = []
    rows = {path: _rows(path, notes) for path in layout.line_files()}
    samples, steps = _samples(rows[layout.samples])
    return Recorded(
        name=layout.run_id,
        root=layout.root,
        summary=_summary(layout, notes),
        config=_config(layout, notes),
        provenance=_object(layout.provenance, notes),
        fingerprint=_object(layout.fingerprint, notes),
        verdict=_object(layout.verdict, notes),
        diagnosis=_object(layout.diagnosis, notes),
        scalars=columns(rows[layout.scalars]),
        evaluations=columns(rows[layout.evaluations]),
        probes=columns(rows[layout.quantization]),
        samples=samples,
        sample_steps=steps,
        anomalies=_anomalies(layout.anomalies),
        notes=notes,
    )


def number(value: Any) -> float | None:
    """The value if it is a finite number that a curve can show."""
    usable = type(value) in (int, float) and abs(value) <= LARGEST
    return float(value) if usable else None


def columns(rows: Sequence[dict[str, Any]]) -> Columns:
    """Every key that is a number in some row, as an array over the rows in order of step."""
    ordered = sorted(rows, key=lambda row: row["step"])
    named = dict.fromkeys(
        name for row in ordered for name, value in row.items() if type(value) in (int, float)
    )
    names = [name for name in named if _COLUMN.fullmatch(name)]
    return {name: _column([row.get(name) for row in ordered]) for name in names}


def spread(count: int, most: int) -> list[int]:
    """At most `most` of the indices 0..count-1, evenly spaced, first and last included."""
    if count <= most:
        return list(range(count))
    return sorted({round(index * (count - 1) / (most - 1)) for index in range(most)})


def clipped(text: str, limit: int = TEXT_LIMIT) -> str:
    """The text, cut with an ellipsis when it is too long for a page."""
    return text if len(text) <= limit else text[:limit] + "…"


def _column(values: list[Any]) -> Column:
    # most values are floats, and 60,000 rows have a dozen each
    floats = [value if type(value) is float else _or_nan(value) for value in values]
    column = np.array(floats, dtype=np.float64)
    return np.where(np.abs(column) <= LARGEST, column, np.nan)


def _or_nan(value: Any) -> float:
    found = number(value)
    return float("nan") if found is None else found


def _rows(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    try:
        lines = read_lines(path)
    except OSError as error:
        notes.append(f"{path.name} could not be read ({error.strerror})")
        return []
    rows = [row for row in lines.rows if type(row["step"]) is int and 0 <= row["step"] < 2**53]
    skipped = lines.skipped + len(lines.rows) - len(rows)
    if skipped:
        notes.append(f"{path.name}: {skipped} unreadable line{'s' if skipped > 1 else ''} skipped")
    return rows


def _config(layout: RunLayout, notes: list[str]) -> dict[str, Any]:
    try:
        return read_config(layout)
    except BitnetError as error:
        notes.append(str(error))
        return {}


def _object(path: Path, notes: list[str]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return read_json(path)
    except (BitnetError, OSError):
        notes.append(f"{path.name} is not readable JSON and was skipped")
        return {}


def _summary(layout: RunLayout, notes: list[str]) -> dict[str, Any]:
    try:
        return run_summary(layout)
    except (TypeError, ValueError, AttributeError, OSError) as error:
        notes.append(f"the state of the run could not be read ({type(error).__name__})")
        return {}


def _samples(rows: Sequence[dict[str, Any]]) -> tuple[list[Sample], int]:
    """Samples of a few prompts at a few steps, and the number of all steps that have samples."""
    usable = [
        row
        for row in rows
        if all(isinstance(row.get(name), str) for name in ("prompt", "mode", "generated_text"))
    ]
    steps = sorted({row["step"] for row in usable})
    kept = {steps[index] for index in spread(len(steps), SAMPLE_STEPS)}
    prompts = list(dict.fromkeys(row["prompt"] for row in usable))[:SAMPLE_PROMPTS]
    chosen = [_sample(row) for row in usable if row["step"] in kept and row["prompt"] in prompts]
    return sorted(chosen, key=lambda sample: sample.step), len(steps)


def _sample(row: dict[str, Any]) -> Sample:
    figures = {name: value for name in _SAMPLE_FIGURES if (value := number(row.get(name))) is not None}
    return Sample(row["step"], row["prompt"], row["mode"], clipped(row["generated_text"]), figures)


def _anomalies(folder: Path) -> list[DumpPage]:
    if not folder.is_dir():
        return []
    matches = [
        (path, match)
        for path in folder.iterdir()
        if path.is_dir() and (match := _ANOMALY.fullmatch(path.name))
    ]
    found = sorted(
        ((int(match.group(1)), match.group(2), path) for path, match in matches), key=lambda one: one[:2]
    )
    return [_anomaly(step, event, path) for step, event, path in found[:ANOMALY_LIMIT]]


def _anomaly(step: int, event: str, folder: Path) -> DumpPage:
    readme = folder / "README.md"
    try:
        with open_regular(readme) as file:
            # a character has at most four bytes
            text = file.read(4 * README_LIMIT).decode("utf-8", errors="replace")
    except (OSError, DataError):
        text = ""
    files = tuple(sorted(path.name for path in folder.iterdir() if path.name != readme.name))
    return DumpPage(step, event, folder.name, clipped(text.strip(), README_LIMIT), files)
