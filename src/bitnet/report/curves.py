"""The curves of a page, as interactive Bokeh plots. What they share is in axes.py, heat maps in heatmap.py.

Each function takes the frame and returns a plot, or None if no run recorded what it shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from bokeh.models import LinearAxis, Range1d

from bitnet.report.axes import (
    COLOURS,
    Frame,
    Series,
    blank,
    columns_plot,
    finished,
    has,
    hover,
    lines,
    marked,
    named,
    source_of,
)
from bitnet.report.plots import smoothed
from bitnet.report.read_run import Columns, Recorded, number

LOSS_HEIGHT = 360  # pixels
ALARM = "#d1574f"
# of eval_results.jsonl; its other keys are the experiment's own
LOSS_KEYS = ("eval_loss", "train_loss", "train_eval_gap", "bits_per_byte")


def loss(frame: Frame) -> Any:
    """Training loss, raw and smoothed, with the held-out loss."""
    plot = blank(frame, "nats / token")
    plot.height = LOSS_HEIGHT
    raw = Series("loss", "every update", width=0.8, alpha=0.45)
    smooth = Series("smooth", "training, smoothed", width=2.2)
    held_out = Series("eval_loss", "held out")
    items: list[Any] = []
    for index, run in enumerate(frame.runs):
        table = _with_held_out(with_smooth(run.scalars, "loss"), run.evaluations)
        shown = [raw, smooth, *([held_out] if "eval_loss" in table else [])]
        source = source_of(run, table, shown, by=("loss",))
        drawn = lines(frame, plot, source, index, [raw, smooth])
        items += named(frame, index, [drawn], ["training, smoothed"]) if drawn else []
        evaluations = source_of(run, run.evaluations, [held_out])
        points = _evaluation_points(frame, plot, evaluations, index)
        items += named(frame, index, [points], ["held out"]) if points else []
        hover(frame, plot, drawn[1:] or points[:1], index, shown if drawn else [held_out])
        _anomaly_marks(plot, run)
    return finished(frame, plot, items)


def _evaluation_points(frame: Frame, plot: Any, source: Any, index: int) -> list[Any]:
    if "eval_loss" not in source.data:
        return []
    colour = COLOURS[index] if frame.compares else COLOURS[1]
    line = plot.line(
        "step", "eval_loss", source=source, line_color=colour, line_width=1.4, line_dash="dashed"
    )
    dots = plot.scatter("step", "eval_loss", source=source, size=5, color=colour)
    return [line, dots]


def metrics(frame: Frame, *, shares: bool) -> Any:
    """The experiment's own figures over evaluations: those between 0 and 1, or the others."""
    plot = blank(frame, "share of held-out cases" if shares else "value", numbers="0%" if shares else None)
    if shares:
        plot.y_range.start, plot.y_range.end = -0.03, 1.03
    names = list(
        dict.fromkeys(name for run in frame.runs for name in _metric_names(run.evaluations, shares=shares))
    )
    plotted = columns_plot(
        frame,
        plot,
        lambda run: run.evaluations,
        [Series(name, name, "0.0%" if shares else "0.000") for name in names],
        dots=True,
    )
    return _with_thresholds(plotted, frame.runs, names) if plotted else None


def _metric_names(table: Columns, *, shares: bool) -> list[str]:
    own = [name for name in table if name != "step" and name not in LOSS_KEYS and not name.endswith("_cases")]
    return [
        name
        for name in own
        if bool(np.all((np.nan_to_num(table[name]) >= 0) & (np.nan_to_num(table[name]) <= 1))) == shares
    ]


def _with_thresholds(plot: Any, runs: Sequence[Recorded], names: Sequence[str]) -> Any:
    """Dashed lines where the criteria of success lie."""
    for run in runs:
        criteria = run.verdict.get("criteria")
        for one in criteria if isinstance(criteria, list) else []:
            shown = isinstance(one, dict) and one.get("metric") in names
            at = number(one.get("threshold")) if shown else None
            if at is not None:
                plot.add_layout(marked(at, "width"))
    return plot


def rates(frame: Frame) -> Any:
    """Learning rate on the left axis, weight decay on the right."""
    plot = blank(frame, "learning rate", numbers="0.[000000]")
    highest = max(
        [float(np.nanmax(run.scalars["wd"])) for run in frame.runs if has(run.scalars, "wd")] + [0.0]
    )
    plot.extra_y_ranges = {"wd": Range1d(start=0, end=highest * 1.1 or 1.0)}
    plot.add_layout(LinearAxis(y_range_name="wd", axis_label="weight decay"), "right")
    series = [Series("lr", "learning rate", "0.[00000000]"), Series("wd", "weight decay", "0.000", axis="wd")]
    plotted = columns_plot(frame, plot, lambda run: run.scalars, series)
    plot.y_range.renderers = [line for line in plot.renderers if line.y_range_name == "default"]
    return plotted


def gradient_norm(frame: Frame) -> Any:
    """Norm of the gradient before clipping."""
    plot = blank(frame, "gradient norm", logarithmic=True)
    return _raw_and_smooth(frame, plot, "grad_norm", "0.000")


def throughput(frame: Frame) -> Any:
    """Tokens per second of each update."""
    plot = blank(frame, "tokens / s", numbers="0,0")
    plot.y_range.start = 0
    return _raw_and_smooth(frame, plot, "tokens_per_sec", "0,0")


def _raw_and_smooth(frame: Frame, plot: Any, key: str, digits: str) -> Any:
    series = [
        Series(key, "this update", digits, width=0.8, alpha=0.4),
        Series("smooth", "smoothed", digits, width=2.0),
    ]
    return columns_plot(
        frame, plot, lambda run: with_smooth(run.scalars, key), series, same_colour=True, by=(key,)
    )


def ternary_shares(frame: Frame) -> Any:
    """Share of each code over the model's ternary weights."""
    plot = blank(frame, "share of ternary weights", numbers="0.[0]%")
    series = [
        Series("zero_pct", "0", "0.00%"),
        Series("neg1_pct", "−1", "0.00%"),
        Series("pos1_pct", "+1", "0.00%", dash="dashed"),
    ]
    return columns_plot(frame, plot, lambda run: run.probes, series, dots=True)


def flips(frame: Frame) -> Any:
    """Share of codes that changed between probes."""
    plot = blank(frame, "share flipped between probes", numbers="0.[000]%")
    plot.y_range.start = 0
    return columns_plot(
        frame, plot, lambda run: run.probes, [Series("flipped_pct", "flipped", "0.000%")], dots=True
    )


def with_smooth(table: Columns, key: str) -> Columns:
    """The table with `smooth`, an average over 20 updates; fewer in a run below 400, more above 6,000."""
    if not has(table, key):
        return {}
    count = len(table[key])
    span = max(1.0, min(20.0, count / 20), count / 300)
    return {**table, "smooth": smoothed(table[key], 1 - 1 / span)}


def _with_held_out(table: Columns, evaluations: Columns) -> Columns:
    """The table with the last held-out loss at each step, so that one tooltip shows both."""
    if not table or not has(evaluations, "eval_loss"):
        return table
    place = np.searchsorted(evaluations["step"], table["step"], side="right") - 1
    known = np.where(place >= 0, evaluations["eval_loss"][np.maximum(place, 0)], np.nan)
    return {**table, "eval_loss": known}


def _anomaly_marks(plot: Any, run: Recorded) -> None:
    for anomaly in run.anomalies:
        line = marked(anomaly.step, "height", colour=ALARM, dash="solid")
        line.line_alpha = 0.7
        plot.add_layout(line)
