"""Two runs side by side, as a ternary run and its control: the gap over steps, in numbers and in a picture.

A gap says something about the weights only where everything else was equal: same data, same order, same
recipe. What the two configurations and the fingerprints of their data do not share is found first; only what
makes a control a control may differ. The gap is the second run minus the first. Losses in nats per token,
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
"""What a control changes; `product` says how ternary layers multiply, which a control has none of."""
WINDOW = 100  # updates that a training loss is averaged over, as in train_loss of the evaluations


@dataclass(frozen=True)
class Comparison:
    """steps: where both runs have figures; values: for each metric one pair per step, NaN where a run has
    none.
    """

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
        rows = [
            {
                "step": step,
                **{
                    metric: {"first": both[i][0], "second": both[i][1], "gap": both[i][1] - both[i][0]}
                    for metric, both in self.values.items()
                },
            }
            for i, step in enumerate(self.steps)
        ]
        return {
            "runs": list(self.names),
            "differences": self.differences,
            "rows": rows,
            "last": rows[-1] if rows else None,
        }


def compare(
    first: RunLayout, second: RunLayout, metrics: Sequence[str] = (), *, force: bool = False
) -> Comparison:
    """Compare two runs at the steps of their evaluations. metrics: further ones than the losses, such as
    those of the criteria.

    Raises ConfigError where data, order or recipe differ and not `force`; DataError where nothing can be
    compared.
    """
    differences = unequal(first, second)
    if differences and not force:
        shown = "; ".join(differences[:6]) + (
            f"; and {len(differences) - 6} more" if len(differences) > 6 else ""
        )
        raise ConfigError(
            f"{first.run_id} and {second.run_id} differ in more than their weights ({shown}); compare equal "
            "runs, or say --force"
        )
    losses = _losses(first), _losses(second)
    tables = [
        _figures(layout, steps, values)
        for layout, (steps, values) in zip((first, second), losses, strict=True)
    ]
    steps = sorted(tables[0].keys() & tables[1].keys())
    if not steps:
        raise DataError(
            f"{first.run_id} and {second.run_id} were not evaluated at the same steps; give both one "
            "--train.eval-every"
        )
    wanted = ["train_loss", "eval_loss", "bits_per_byte", *metrics]
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
    """Every figure of each evaluation, the mean training loss up to it included."""
    found: dict[int, dict[str, float]] = {}
    place = np.asarray(steps)
    for row in read_lines(layout.evaluations).rows:
        figures = {
            key: float(value)
            for key, value in row.items()
            if isinstance(value, int | float) and key != "step"
        }
        recent = (
            np.asarray(losses)[(place > row["step"] - WINDOW) & (place <= row["step"])]
            if len(place)
            else place
        )
        found[row["step"]] = {**figures, **({"train_loss": float(recent.mean())} if len(recent) else {})}
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
    others = [
        metric for metric in comparison.values if metric not in ("train_loss", "eval_loss", "bits_per_byte")
    ]
    figure, axes = plt.subplots(
        1, 2 + bool(others), figsize=(6 * (2 + bool(others)), 4.2), constrained_layout=True
    )
    for index, (name, (steps, losses)) in enumerate(zip(comparison.names, comparison.losses, strict=True)):
        axes[0].plot(steps, losses, color=f"C{index}", alpha=0.25, linewidth=0.8)
        for metric, style in (("train_loss", "-"), ("eval_loss", "o--")):
            if metric in comparison.values:
                values = [pair[index] for pair in comparison.values[metric]]
                axes[0].plot(
                    comparison.steps,
                    values,
                    style,
                    color=f"C{index}",
                    markersize=4,
                    label=f"{name}, {metric}",
                )
        for metric in others:
            axes[-1].plot(
                comparison.steps,
                [pair[index] for pair in comparison.values[metric]],
                ".-",
                color=f"C{index}",
                label=f"{name}, {metric}",
            )
    for metric in comparison.values:
        if metric not in others:
            axes[1].plot(comparison.steps, comparison.gap(metric), ".-", label=metric)
    axes[1].axhline(0, color="grey", linewidth=0.8)
    titles = ["loss (nats/token)", "gap: second minus first", "metrics of the experiment"]
    for axis, title in zip(axes, titles, strict=False):
        frame_panel(axis, title, "update")
        axis.legend(fontsize=7, frameon=False)
    save_picture(plt, figure, out)
