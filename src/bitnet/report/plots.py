"""The curves of runs as PNG, with matplotlib (extra `plot`)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from bitnet.errors import ConfigError, DataError
from bitnet.files import replacing
from bitnet.run.layout import RunLayout
from bitnet.run.manifest import read_config
from bitnet.run.metrics import read_lines

XAxis = Literal["steps", "tokens", "time"]
Series = tuple[list[float], list[float]]


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
    """Draw one or several runs, overlaid, into a PNG. Returns how many unreadable lines were passed over."""
    plt = pyplot_or_error()
    from matplotlib import ticker

    figure, axes = plt.subplots(3, 2, figsize=(13, 11), constrained_layout=True)
    skipped = sum(_draw(axes.flat, layout, f"C{index}", x_axis) for index, layout in enumerate(layouts))
    for axis, title in zip(axes.flat, PANELS, strict=True):
        frame_panel(axis, title, AXES[x_axis])
    axes.flat[0].legend(fontsize=8, frameon=False)
    if axes.flat[2].get_yscale() == "log":
        # The usual labels of a logarithmic axis are formulas, which stay unparsed here (see pyplot_or_error).
        axes.flat[2].yaxis.set_major_formatter("{x:g}")
        axes.flat[2].yaxis.set_minor_formatter(ticker.LogFormatter(labelOnlyBase=False))
    axes.flat[4].set_ylim(0, 0.65)
    save_picture(plt, figure, out)
    return skipped


def frame_panel(axis: Any, title: str, x_label: str) -> None:
    """Title, axis and grid as all panels have them."""
    axis.set_title(title, loc="left", fontsize=10)
    axis.set_xlabel(x_label)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def save_picture(plt: Any, figure: Any, out: Path) -> None:
    """Write a PNG and forget the figure. Raises DataError where it cannot be written."""
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
    """One run on all panels; returns its unreadable lines."""
    files = [read_lines(path) for path in (layout.scalars, layout.evaluations, layout.quantization)]
    rows = files[0].rows
    if not rows:
        raise DataError(f"the run {layout.run_id} has no metrics yet; wait for its first update")
    xs = x_values(rows, x_axis)
    place = dict(zip((row["step"] for row in rows), xs, strict=True))
    _draw_scalars(axes, rows, xs, layout.run_id, colour)
    evaluations = [row for row in files[1].rows if row.get("eval_loss") is not None and row["step"] in place]
    if evaluations:
        points = [place[row["step"]] for row in evaluations]
        axes[0].plot(
            points,
            [row["eval_loss"] for row in evaluations],
            "o--",
            color=colour,
            markersize=4,
            label=f"{layout.run_id}, held out",
        )
    probes = [row for row in files[2].rows if row["step"] in place]
    points = [place[row["step"]] for row in probes]
    for key, style in (
        ("neg1_pct", {"linestyle": ":"}),
        ("zero_pct", {"linewidth": 2}),
        ("pos1_pct", {"linestyle": "--"}),
    ):
        axes[4].plot(points, [_number(row.get(key)) for row in probes], color=colour, **style)
    axes[5].plot(points, [_number(row.get("flipped_pct")) for row in probes], ".-", color=colour)
    boundary = read_config(layout).get("training", {}).get("stage1_end")
    if boundary in place:
        for axis in axes:
            axis.axvline(place[boundary], color=colour, linestyle=":", linewidth=0.8)
    return sum(file.skipped for file in files)


def _draw_scalars(axes: Any, rows: list[dict[str, Any]], xs: list[float], name: str, colour: str) -> None:
    losses = [_number(row.get("loss")) for row in rows]
    axes[0].plot(xs, losses, color=colour, alpha=0.2, linewidth=0.8)
    axes[0].plot(xs, smoothed(losses), color=colour, label=f"{name}, training")
    axes[1].plot(xs, [_number(row.get("lr")) for row in rows], color=colour)
    decay = axes[1].twinx() if not hasattr(axes[1], "decay_axis") else axes[1].decay_axis
    axes[1].decay_axis = decay
    decay.plot(xs, [_number(row.get("wd")) for row in rows], color=colour, linestyle="--", linewidth=0.8)
    decay.set_ylim(bottom=0)
    norms = [_number(row.get("grad_norm")) for row in rows]
    axes[2].plot(xs, norms, color=colour, linewidth=0.8)
    if any(norm > 0 for norm in norms):  # a logarithmic axis needs one
        axes[2].set_yscale("log")
    axes[3].plot(xs, smoothed([_number(row.get("tokens_per_sec")) for row in rows]), color=colour)


def x_values(rows: Sequence[dict[str, Any]], x_axis: XAxis) -> list[float]:
    """Update, tokens seen, or seconds spent in updates, for each row."""
    if x_axis == "steps":
        return [float(row["step"]) for row in rows]
    if x_axis == "tokens":
        return [_number(row.get("tokens_seen")) for row in rows]
    seconds, total = [], 0.0
    for row in rows:
        total += (row.get("step_time_ms") or 0.0) / 1e3
        seconds.append(total)
    return seconds


def smoothed(values: Sequence[float], weight: float | None = None) -> list[float]:
    """Exponential moving average without start-up bias (Adam's correction); gaps are passed over.

    weight: of the past; by default the average reaches back over about a fiftieth of the values, 100 at most.
    """
    if weight is None:
        weight = 1 - 1 / min(max(len(values) / 50, 2), 100)
    average, mass, out = 0.0, 0.0, []
    for value in values:
        if value == value:
            average, mass = weight * average + (1 - weight) * value, weight * mass + (1 - weight)
        out.append(average / mass if mass else float("nan"))
    return out


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")
