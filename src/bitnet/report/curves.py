"""Curves over updates that answer to the mouse, as Bokeh plots. Heat maps are in heatmap.py, the page in page.py.

All curves of a page share one horizontal range and one crosshair: zoom into one and the others follow. A run of any
length is reduced to about 2,000 points per curve that keep each bucket's lowest and highest value, so no spike is lost.
With one run, colours tell series apart; with two, colours tell the runs apart and dashes the series.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from bokeh.models import ColumnDataSource, CrosshairTool, HoverTool, Legend, LegendItem, LinearAxis, Range1d, Span
from bokeh.plotting import figure
from numpy.typing import NDArray

from bitnet.report.plots import smoothed
from bitnet.report.recorded import Column, Columns, Recorded, number

POINTS = 2000  # per curve: more than the pixels of a wide screen, and two dozen curves stay within a few hundred kB
HEIGHT = 280  # pixels
COLOURS = ("#3b82d6", "#e0772f", "#2f9e74", "#c2528b", "#8b6fd0", "#b08a1e", "#4aa3b8", "#d1574f")  # legible on white and on near-black
DASHES = ("solid", "dashed", "dotted", "dotdash")
MARK = "#8a8f98"
ALARM = "#d1574f"
LOSS_KEYS = ("eval_loss", "train_loss", "train_eval_gap", "bits_per_byte")  # of eval_results.jsonl, not an experiment's own


@dataclass(frozen=True)
class Series:
    """One curve of a figure: the column it shows and what it is called."""

    key: str
    label: str
    digits: str = "0.0000"
    width: float = 1.8
    alpha: float = 1.0
    axis: str = "default"


@dataclass(frozen=True)
class Frame:
    """What all curves of a page share."""

    runs: Sequence[Recorded]
    across: Any
    crosshair: Any

    @property
    def compares(self) -> bool:
        """Whether two runs are overlaid."""
        return len(self.runs) > 1

    def pen(self, run: int, series: int) -> tuple[str, str]:
        """Colour and dash of a curve."""
        if self.compares:
            return COLOURS[run], DASHES[series % len(DASHES)]
        return COLOURS[series % len(COLOURS)], "solid"


def shared_frame(runs: Sequence[Recorded]) -> Frame:
    """Range and crosshair for the curves of these runs."""
    last = max([_last_step(run) for run in runs] + [1.0])
    across = Range1d(start=0, end=last, bounds=(0, last), min_interval=min(10.0, last))
    return Frame(runs, across, Span(dimension="height", line_color=MARK, line_dash="dotted", line_width=1))


def _last_step(run: Recorded) -> float:
    ends = [float(table["step"][-1]) for table in (run.scalars, run.evaluations, run.probes) if "step" in table]
    return max(ends, default=0.0)


def decimated(values: NDArray[np.float64], points: int = POINTS) -> NDArray[np.intp]:
    """Indices, ascending, of each bucket's lowest and highest value, with the first and the last; all when they are few."""
    count = len(values)
    if count <= points:
        return np.arange(count)
    edges = np.linspace(0, count, points // 2 + 1).astype(np.intp)
    low, high = (np.where(np.isnan(values), fill, values) for fill in (np.inf, -np.inf))
    pairs = zip(edges[:-1], edges[1:], strict=True)
    kept = [index for a, b in pairs for index in (a + np.argmin(low[a:b]), a + np.argmax(high[a:b]))]
    return np.unique(np.array([0, *kept, count - 1], dtype=np.intp))


def loss(frame: Frame) -> Any:
    """Training loss, raw and smoothed, with the held-out loss."""
    plot = blank(frame, "nats / token")
    raw = Series("loss", "every update", width=0.8, alpha=0.35)
    smooth = Series("smooth", "training, smoothed", width=2.2)
    held_out = Series("eval_loss", "held out")
    items: list[Any] = []
    for index, run in enumerate(frame.runs):
        table = _with_held_out(with_smooth(run.scalars, "loss"), run.evaluations)
        told = [raw, smooth, *([held_out] if "eval_loss" in table else [])]
        source = _source(run, table, told, by=("loss",))
        drawn = _lines(frame, plot, source, index, [raw, smooth])
        items += _named(frame, run, drawn[1:], ["training, smoothed"])
        evaluations = _source(run, run.evaluations, [held_out])
        points = _evaluation_points(frame, plot, evaluations, index)
        items += _named(frame, run, points[:1], ["held out"])
        _hover(plot, drawn[1:] or points[:1], index, told if drawn else [held_out])
        _anomaly_marks(plot, run)
    return _finished(frame, plot, items)


def _evaluation_points(frame: Frame, plot: Any, source: Any, index: int) -> list[Any]:
    if "eval_loss" not in source.data:
        return []
    colour = COLOURS[index] if frame.compares else COLOURS[1]
    line = plot.line("step", "eval_loss", source=source, line_color=colour, line_width=1.4, line_dash="dashed")
    dots = plot.scatter("step", "eval_loss", source=source, size=5, color=colour)
    return [line, dots]


def metrics(frame: Frame, *, shares: bool) -> Any:
    """The experiment's own figures over evaluations: those between 0 and 1, or the others."""
    plot = blank(frame, "share of held-out cases" if shares else "value")
    if shares:
        plot.y_range.start, plot.y_range.end = -0.03, 1.03
    names = list(dict.fromkeys(name for run in frame.runs for name in _metric_names(run.evaluations, shares=shares)))
    finished = _tables(frame, plot, lambda run: run.evaluations, [Series(name, name, "0.000") for name in names], dots=True)
    return _with_thresholds(finished, frame.runs, names) if finished else None


def _metric_names(table: Columns, *, shares: bool) -> list[str]:
    own = [name for name in table if name != "step" and name not in LOSS_KEYS and not name.endswith("_cases")]
    return [name for name in own if bool(np.all((np.nan_to_num(table[name]) >= 0) & (np.nan_to_num(table[name]) <= 1))) == shares]


def _with_thresholds(plot: Any, runs: Sequence[Recorded], names: Sequence[str]) -> Any:
    """Dashed lines where the criteria of success lie."""
    for run in runs:
        criteria = run.verdict.get("criteria")
        for one in criteria if isinstance(criteria, list) else []:
            at = number(one.get("threshold")) if isinstance(one, dict) and one.get("metric") in names else None
            if at is not None:
                plot.add_layout(Span(location=at, dimension="width", line_color=MARK, line_dash="dashed", line_width=1))
    return plot


def rates(frame: Frame) -> Any:
    """Learning rate on the left axis, weight decay on the right."""
    plot = blank(frame, "learning rate")
    highest = max([float(np.nanmax(run.scalars["wd"])) for run in frame.runs if _has(run.scalars, "wd")] + [0.0])
    plot.extra_y_ranges = {"wd": Range1d(start=0, end=highest * 1.1 or 1.0)}
    plot.add_layout(LinearAxis(y_range_name="wd", axis_label="weight decay"), "right")
    plot.yaxis[0].formatter.power_limit_low = -3
    series = [Series("lr", "learning rate", "0.00e+0"), Series("wd", "weight decay", "0.000", axis="wd")]
    return _tables(frame, plot, lambda run: run.scalars, series)


def gradient_norm(frame: Frame) -> Any:
    """Norm of the gradient before clipping."""
    plot = blank(frame, "gradient norm", logarithmic=True)
    return _raw_and_smooth(frame, plot, "grad_norm", "0.000")


def throughput(frame: Frame) -> Any:
    """Tokens per second of each update."""
    plot = blank(frame, "tokens / s")
    plot.yaxis.formatter.use_scientific = False
    plot.y_range.start = 0
    return _raw_and_smooth(frame, plot, "tokens_per_sec", "0,0")


def _raw_and_smooth(frame: Frame, plot: Any, key: str, digits: str) -> Any:
    series = [Series(key, "this update", digits, width=0.8, alpha=0.3), Series("smooth", "smoothed", digits, width=2.0)]
    return _tables(frame, plot, lambda run: with_smooth(run.scalars, key), series, same_colour=True, by=(key,))


def ternary_shares(frame: Frame) -> Any:
    """Share of each code over the model's ternary weights."""
    plot = blank(frame, "share of ternary weights")
    series = [Series("zero_pct", "0"), Series("neg1_pct", "−1"), Series("pos1_pct", "+1")]
    return _tables(frame, plot, lambda run: run.probes, series, dots=True)


def flips(frame: Frame) -> Any:
    """Share of codes that changed between probes."""
    plot = blank(frame, "share flipped between probes")
    plot.y_range.start = 0
    return _tables(frame, plot, lambda run: run.probes, [Series("flipped_pct", "flipped", "0.00000")], dots=True)


def with_smooth(table: Columns, key: str) -> Columns:
    """The table with `smooth`: an average over about a hundredth of the run, at least 20 updates."""
    if not _has(table, key):
        return {}
    span = max(20.0, len(table[key]) / 100)
    return {**table, "smooth": np.array(smoothed(table[key].tolist(), 1 - 1 / span))}


def _with_held_out(table: Columns, evaluations: Columns) -> Columns:
    """The table with the last held-out loss known at each step, so that one tooltip tells both."""
    if not table or not _has(evaluations, "eval_loss"):
        return table
    place = np.searchsorted(evaluations["step"], table["step"], side="right") - 1
    known = np.where(place >= 0, evaluations["eval_loss"][np.maximum(place, 0)], np.nan)
    return {**table, "eval_loss": known}


def blank(frame: Frame, y_label: str, *, logarithmic: bool = False) -> Any:
    """An empty plot over updates."""
    plot = figure(
        height=HEIGHT, sizing_mode="stretch_width", x_range=frame.across, y_axis_type="log" if logarithmic else "linear",
        tools="box_zoom,xpan,reset,save", active_drag="box_zoom", toolbar_location="above", x_axis_label="update",
        y_axis_label=y_label, output_backend="canvas",
    )  # fmt: skip
    plot.window_axis = "x"  # the vertical range follows what the horizontal one shows
    plot.add_tools(CrosshairTool(overlay=frame.crosshair))
    plot.xaxis.formatter.use_scientific = False
    plot.toolbar.tools[0].dimensions = "width"
    return plot


def _tables(
    frame: Frame, plot: Any, table_of: Callable[[Recorded], Columns], series: Sequence[Series], *,
    dots: bool = False, same_colour: bool = False, by: tuple[str, ...] = (),
) -> Any:  # fmt: skip
    """The plot with these series of every run; None when no run has any of them."""
    items: list[Any] = []
    for index, run in enumerate(frame.runs):
        table = table_of(run)
        present = [one for one in series if _has(table, one.key)]
        source = _source(run, table, present, by=by)
        drawn = _lines(frame, plot, source, index, present, dots=dots, same_colour=same_colour)
        shown = [-1] if same_colour and drawn else range(len(drawn))
        items += _named(frame, run, [drawn[place] for place in shown], [present[place].label for place in shown])
        _hover(plot, drawn[-1:], index, present)
    return _finished(frame, plot, items)


def _has(table: Columns, key: str) -> bool:
    return "step" in table and key in table and bool(np.any(np.isfinite(table[key])))


def _source(run: Recorded, table: Columns, series: Sequence[Series], by: tuple[str, ...] = ()) -> Any:
    """The columns that these series need, reduced; `by` names the columns whose extremes are kept (default: all)."""
    present = [one.key for one in series if _has(table, one.key)]
    if not present:
        return ColumnDataSource({}, name=run.name)
    kept = np.unique(np.concatenate([decimated(table[key]) for key in by or present]))
    return ColumnDataSource({key: _compact(key, table[key][kept]) for key in ("step", *present)}, name=run.name)


def _compact(key: str, values: Column) -> NDArray[Any]:
    """Six digits are more than a screen shows; steps stay exact."""
    return values.astype(np.int32) if key == "step" else values.astype(np.float32)


def _lines(
    frame: Frame, plot: Any, source: Any, index: int, series: Sequence[Series], *, dots: bool = False, same_colour: bool = True
) -> list[Any]:
    drawn = []
    for place, one in enumerate(one for one in series if one.key in source.data):
        colour, dash = frame.pen(index, 0 if same_colour else place)
        style = {"source": source, "y_range_name": one.axis, "alpha": one.alpha}
        drawn.append(plot.line("step", one.key, line_color=colour, line_dash=dash, line_width=one.width, **style))
        if dots and len(source.data["step"]) <= 80:
            plot.scatter("step", one.key, color=colour, size=4, **style)
    return drawn


def _named(frame: Frame, run: Recorded, drawn: Sequence[Any], labels: Sequence[str]) -> list[Any]:
    prefix = f"{run.name}: " if frame.compares else ""
    return [LegendItem(label=prefix + label, renderers=[line]) for line, label in zip(drawn, labels, strict=True)]


def _hover(plot: Any, renderers: Sequence[Any], index: int, series: Sequence[Series]) -> None:
    """One tooltip per run, the first run's to the left and the second's to the right of the mouse."""
    if not renderers:
        return
    run = renderers[0].data_source.name
    rows = [("run", _literal(run)), ("update", "@step{0,0}"), *((one.label, f"@{{{one.key}}}{{{one.digits}}}") for one in series)]
    plot.add_tools(HoverTool(renderers=list(renderers), mode="vline", tooltips=rows, attachment="left" if index else "right"))


def _literal(text: str) -> str:
    """Text for a tooltip, in which @ and $ would begin a column's name."""
    return text.replace("@", "＠").replace("$", "＄")


def _anomaly_marks(plot: Any, run: Recorded) -> None:
    for anomaly in run.anomalies:
        plot.add_layout(Span(location=anomaly.step, dimension="height", line_color=ALARM, line_width=1, line_alpha=0.7))


def _finished(frame: Frame, plot: Any, items: Sequence[Any]) -> Any:
    """The plot with its legend and the stage boundary; None when nothing was drawn."""
    if not items:
        return None
    for boundary in {run.boundary for run in frame.runs} - {None}:
        plot.add_layout(Span(location=boundary, dimension="height", line_color=MARK, line_dash="dashed", line_width=1))
    legend = Legend(items=list(items), click_policy="hide", orientation="horizontal", ncols=2 if frame.compares or len(items) > 4 else len(items))
    plot.add_layout(legend, "above")
    return plot
