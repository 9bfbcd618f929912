"""The curves of runs as PNG, with matplotlib (extra `plot`)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bitnet.errors import ConfigError, DataError
from bitnet.files import replacing
from bitnet.report.read_run import Column, Columns, columns, number
from bitnet.run.layout import RunLayout
from bitnet.run.manifest import read_config
from bitnet.run.metrics import read_lines

XAxis = Literal["steps", "tokens", "time"]

AXES = {"steps": "update", "tokens": "tokens", "time": "seconds of training"}
PANELS = (
    "loss (nats/token)",
    "learning rate (line) and weight decay (dashes)",
    "gradient norm, before clipping",
    "tokens/s",
    "ternary codes: share of -1, 0 (thick), +1",
    "codes flipped since the last probe (share)",
)


def plot_runs(layouts: Sequence[RunLayout], out: Path, x_axis: XAxis = "steps") -> int:
    """Draw one or several runs, overlaid, into a PNG. Returns the number of unreadable lines."""
    plt = pyplot_or_error()
    from matplotlib import ticker

    figure, axes = plt.subplots(3, 2, figsize=(13, 11), constrained_layout=True)
    skipped = sum(_draw(axes.flat, layout, f"C{index}", x_axis) for index, layout in enumerate(layouts))
    for axis, title in zip(axes.flat, PANELS, strict=True):
        frame_panel(axis, title, AXES[x_axis])
    axes.flat[0].legend(fontsize=8, frameon=False)
    if axes.flat[2].get_yscale() == "log":
        # the usual labels of a logarithmic axis are formulas, which pyplot_or_error switches off
        axes.flat[2].yaxis.set_major_formatter("{x:g}")
        axes.flat[2].yaxis.set_minor_formatter(ticker.LogFormatter(labelOnlyBase=False))
    axes.flat[4].set_ylim(0, 0.65)
    save_picture(plt, figure, out)
    return skipped


def frame_panel(axis: Any, title: str, x_label: str) -> None:
    """Set the title, axis and grid that all panels have."""
    axis.set_title(title, loc="left", fontsize=10)
    axis.set_xlabel(x_label)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def save_picture(plt: Any, figure: Any, out: Path) -> None:
    """Write a PNG and close the figure. Raises DataError if it cannot be written."""
    try:
        with replacing(out) as temporary:
            figure.savefig(temporary, dpi=110)
    except OSError as error:
        raise DataError(f"{out} cannot be written ({error.strerror}); choose another --out") from None
    finally:
        plt.close(figure)


def pyplot_or_error() -> Any:
    """matplotlib.pyplot without a window. Raises ConfigError without the extra."""
    try:
        import matplotlib as mpl
    except ImportError:
        raise ConfigError("plots need matplotlib; install it with: pip install 'bitnet[plot]'") from None
    mpl.use("Agg")
    mpl.rcParams["text.parse_math"] = False  # a run's name may hold dollar signs
    warnings.filterwarnings("ignore", message="Glyph .* missing from")  # and letters that the font lacks
    from matplotlib import pyplot

    return pyplot


def _draw(axes: Any, layout: RunLayout, colour: str, x_axis: XAxis) -> int:
    """Draw one run on all panels. Returns its number of unreadable lines."""
    files = [read_lines(path) for path in (layout.scalars, layout.evaluations, layout.quantization)]
    scalars, evaluations, probes = (columns(file.rows) for file in files)
    if not scalars:
        raise DataError(f"the run {layout.run_id} has no metrics yet; wait for its first update")
    xs = x_values(scalars, x_axis)
    _draw_scalars(axes, scalars, xs, layout.run_id, colour)

    def at(table: Columns, key: str) -> tuple[Column, Column]:
        """A column of another file, at the steps that the scalars have too."""
        if key not in table:
            return np.empty(0), np.empty(0)
        known = np.isin(table["step"], scalars["step"])
        return np.interp(table["step"][known], scalars["step"], xs), table[key][known]

    held_out = at(evaluations, "eval_loss")
    if len(held_out[0]):
        label = f"{layout.run_id}, held out"
        axes[0].plot(*held_out, "o--", color=colour, markersize=4, label=label)
    axes[4].plot(*at(probes, "neg1_pct"), color=colour, linestyle=":")
    axes[4].plot(*at(probes, "zero_pct"), color=colour, linewidth=2)
    axes[4].plot(*at(probes, "pos1_pct"), color=colour, linestyle="--")
    axes[5].plot(*at(probes, "flipped_pct"), ".-", color=colour)

    boundary = number(read_config(layout).get("training", {}).get("stage1_end"))
    if boundary is not None and boundary in scalars["step"]:
        for axis in axes:
            axis.axvline(xs[scalars["step"] == boundary][0], color=colour, linestyle=":", linewidth=0.8)
    return sum(file.skipped for file in files)


def _draw_scalars(axes: Any, table: Columns, xs: Column, name: str, colour: str) -> None:
    absent = np.full(len(xs), np.nan)
    loss, norm = table.get("loss", absent), table.get("grad_norm", absent)

    axes[0].plot(xs, loss, color=colour, alpha=0.2, linewidth=0.8)
    axes[0].plot(xs, smoothed(loss), color=colour, label=f"{name}, training")

    axes[1].plot(xs, table.get("lr", absent), color=colour)
    decay = axes[1].twinx() if not hasattr(axes[1], "decay_axis") else axes[1].decay_axis
    axes[1].decay_axis = decay  # the runs share it
    decay.plot(xs, table.get("wd", absent), color=colour, linestyle="--", linewidth=0.8)
    decay.set_ylim(bottom=0)

    axes[2].plot(xs, norm, color=colour, linewidth=0.8)
    if np.any(norm > 0):  # a logarithmic axis needs one
        axes[2].set_yscale("log")
    axes[3].plot(xs, smoothed(table.get("tokens_per_sec", absent)), color=colour)


def x_values(table: Columns, x_axis: XAxis) -> Column:
    """Update, tokens seen, or seconds spent in updates, for each row."""
    absent = np.full(len(table["step"]), np.nan)
    if x_axis == "time":
        return np.cumsum(np.nan_to_num(table.get("step_time_ms", absent)) / 1e3)
    return table["step"] if x_axis == "steps" else table.get("tokens_seen", absent)


def smoothed(values: Column, weight: float | None = None) -> Column:
    """Exponential moving average without start-up bias (Adam's correction). Gaps are skipped.

    weight: of the past; by default the average reaches back over about a fiftieth of the values, 100 at most.
    """
    if weight is None:
        weight = 1 - 1 / min(max(len(values) / 50, 2), 100)
    average, mass, out = 0.0, 0.0, []
    for value in values.tolist():
        if value == value:
            average, mass = weight * average + (1 - weight) * value, weight * mass + (1 - weight)
        out.append(average / mass if mass else float("nan"))
    return np.array(out)
