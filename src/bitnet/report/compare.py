"""Two runs side by side, such as a ternary run and its control: the gap over steps, in numbers and a picture.

A gap says something about the weights only if everything else was equal: the data, their order and the
settings. The configurations and the fingerprints of the data are therefore compared first. They may differ
only in what a control changes. The gap is the second run minus the first. Losses are in nats per token,
bits_per_byte in bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bitnet.errors import ConfigError, DataError
from bitnet.files import read_json
from bitnet.report.plots import frame_panel, pyplot_or_error, save_picture
from bitnet.run.layout import RunLayout
from bitnet.run.manifest import read_config
from bitnet.run.metrics import read_lines

OF_A_CONTROL = ("model.weights", "model.activations", "training.product")
"""What a control changes. `product` says how ternary layers multiply, and a control has no such layer."""
LOSSES = ("train_loss", "eval_loss", "bits_per_byte")
WINDOW = 100  # updates in the mean of a training loss, as in train_loss of the evaluations


@dataclass(frozen=True)
class Comparison:
    """steps: at which both runs have figures. values: for each metric a pair per step, NaN if absent."""

    names: tuple[str, str]
    differences: list[str]
    steps: list[int]
    values: dict[str, list[tuple[float, float]]]
    losses: tuple[tuple[list[int], list[float]], tuple[list[int], list[float]]]

    def gap(self, metric: str) -> list[float]:
        """Second minus first, at every step."""
        return [second - first for first, second in self.values[metric]]

    def to_json(self) -> dict[str, Any]:
        """For `bitnet compare --json`."""
        rows: list[dict[str, Any]] = [{"step": step} for step in self.steps]
        for metric, pairs in self.values.items():
            for row, (first, second) in zip(rows, pairs, strict=True):
                row[metric] = {"first": first, "second": second, "gap": second - first}
        return {
            "runs": list(self.names),
            "differences": self.differences,
            "rows": rows,
            "last": rows[-1] if rows else None,
        }


def compare(
    first: RunLayout, second: RunLayout, metrics: Sequence[str] = (), *, force: bool = False
) -> Comparison:
    """Compare two runs at the steps of their evaluations. metrics: beside the losses, such as the criteria's.

    Raises ConfigError if data, order or settings differ, unless `force`; DataError if no step is common.
    """
    differences = unequal(first, second)
    if differences and not force:
        more = [f"and {len(differences) - 6} more"] if len(differences) > 6 else []
        shown = "; ".join([*differences[:6], *more])
        raise ConfigError(
            f"{first.run_id} and {second.run_id} differ in more than their weights ({shown}); compare equal "
            "runs, or say --force"
        )
    losses = _losses(first), _losses(second)
    tables = _figures(first, *losses[0]), _figures(second, *losses[1])
    steps = sorted(tables[0].keys() & tables[1].keys())
    if not steps:
        raise DataError(
            f"{first.run_id} and {second.run_id} were not evaluated at the same steps; give both one "
            "--train.eval-every"
        )
    wanted = [*LOSSES, *metrics]
    values = {
        metric: [(tables[0][step].get(metric, np.nan), tables[1][step].get(metric, np.nan)) for step in steps]
        for metric in dict.fromkeys(wanted)
    }
    there = {metric: pairs for metric, pairs in values.items() if any(a == a and b == b for a, b in pairs)}
    return Comparison((first.run_id, second.run_id), differences, steps, there, losses)


def unequal(first: RunLayout, second: RunLayout) -> list[str]:
    """What two runs do not share beside what a control changes, as `training.seed: 1, 2`."""
    configs = [_flat(read_config(layout)) for layout in (first, second)]
    prints = [_flat(read_json(layout.fingerprint), "fingerprint.") for layout in (first, second)]
    found = []
    for one, other in (configs, prints):
        keys = sorted(one.keys() | other.keys())
        found += [
            f"{key}: {one.get(key)}, {other.get(key)}"
            for key in keys
            if key not in OF_A_CONTROL and one.get(key) != other.get(key)
        ]
    return found


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _losses(layout: RunLayout) -> tuple[list[int], list[float]]:
    """Training loss of every update that has one."""
    rows = [row for row in read_lines(layout.scalars).rows if isinstance(row.get("loss"), int | float)]
    return [row["step"] for row in rows], [float(row["loss"]) for row in rows]


def _figures(layout: RunLayout, steps: Sequence[int], losses: Sequence[float]) -> dict[int, dict[str, float]]:
    """The figures of each evaluation by step, with the mean training loss of the updates before it."""
    found: dict[int, dict[str, float]] = {}
    place = np.asarray(steps, dtype=np.int64)
    for row in read_lines(layout.evaluations).rows:
        figures = {
            key: float(value)
            for key, value in row.items()
            if isinstance(value, int | float) and key != "step"
        }
        recent = np.asarray(losses)[(place > row["step"] - WINDOW) & (place <= row["step"])]
        if len(recent):
            figures["train_loss"] = float(recent.mean())
        found[row["step"]] = figures
    return found


def table(comparison: Comparison) -> str:
    """Both figures and the gap of every metric, one line per step."""
    lines = [f"first  {comparison.names[0]}", f"second {comparison.names[1]}   (gap: second minus first)"]
    if comparison.differences:
        lines.append(f"CAUTION, they differ in more than their weights: {'; '.join(comparison.differences)}")
    for metric, pairs in comparison.values.items():
        lines += ["", f"{metric:<24}{'step':>8}{'first':>12}{'second':>12}{'gap':>12}"]
        lines += [
            f"{'':<24}{step:>8}{a:>12.4f}{b:>12.4f}{b - a:>+12.4f}"
            for step, (a, b) in zip(comparison.steps, pairs, strict=True)
        ]
    return "\n".join(lines)


def draw(comparison: Comparison, out: Path) -> None:
    """Losses of both runs, the gap, and every other metric, as a PNG."""
    plt = pyplot_or_error()
    others = [metric for metric in comparison.values if metric not in LOSSES]
    panels = 3 if others else 2
    figure, axes = plt.subplots(1, panels, figsize=(6 * panels, 4.2), constrained_layout=True)

    def curve(axis: Any, index: int, metric: str, style: str, **more: Any) -> None:
        values = [pair[index] for pair in comparison.values[metric]]
        label = f"{comparison.names[index]}, {metric}"
        axis.plot(comparison.steps, values, style, color=f"C{index}", label=label, **more)

    for index, (steps, losses) in enumerate(comparison.losses):
        axes[0].plot(steps, losses, color=f"C{index}", alpha=0.25, linewidth=0.8)
        for metric, style in (("train_loss", "-"), ("eval_loss", "o--")):
            if metric in comparison.values:
                curve(axes[0], index, metric, style, markersize=4)
        for metric in others:
            curve(axes[-1], index, metric, ".-")
    for metric in comparison.values:
        if metric not in others:
            axes[1].plot(comparison.steps, comparison.gap(metric), ".-", label=metric)

    axes[1].axhline(0, color="grey", linewidth=0.8)
    titles = ["loss (nats/token)", "gap: second minus first", "metrics of the experiment"]
    for axis, title in zip(axes, titles, strict=False):
        frame_panel(axis, title, "update")
        axis.legend(fontsize=7, frameon=False)
    save_picture(plt, figure, out)
