"""What all curves of a page share: one horizontal range, one crosshair, one look, a limit of points.

Zooming into one curve zooms all. A run of any length is reduced to about 2,000 points per curve, which keep
each bucket's lowest and highest value, so that no spike is lost. In a page of one run, colours distinguish
series; in a page of two, colours distinguish the runs and dashes the series. The curves are in curves.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from bokeh.models import (
    ColumnDataSource,
    CrosshairTool,
    HoverTool,
    Legend,
    LegendItem,
    NumeralTickFormatter,
    Range1d,
    Span,
)
from bokeh.plotting import figure
from numpy.typing import NDArray

from bitnet.report.read_run import Column, Columns, Recorded

# per curve: more than the pixels of a wide screen, and two dozen curves stay within a few hundred kB
POINTS = 2000
HEIGHT = 270  # pixels
COLOURS = ("#3b82d6", "#e0772f", "#2f9e74", "#c2528b", "#8b6fd0", "#b08a1e", "#4aa3b8", "#d1574f")
LETTERS = "AB"  # two runs, whose names are too long for legends
DASHES = ("solid", "dashed", "dotted", "dotdash")
MARK = "#8a8f98"


@dataclass(frozen=True)
class Series:
    """One curve of a figure: its column, label and look."""

    key: str
    label: str
    digits: str = "0.0000"
    width: float = 1.8
    alpha: float = 1.0
    axis: str = "default"
    dash: str | None = None


@dataclass(frozen=True)
class Frame:
    """The runs, horizontal range and crosshair of a page."""

    runs: Sequence[Recorded]
    across: Any
    crosshair: Any

    @property
    def compares(self) -> bool:
        """Whether two runs are overlaid."""
        return len(self.runs) > 1

    def pen(self, run: int, series: int, dash: str | None = None) -> tuple[str, str]:
        """Colour and dash of a curve."""
        if self.compares:
            return COLOURS[run], DASHES[series % len(DASHES)]
        return COLOURS[series % len(COLOURS)], dash or "solid"


def shared_frame(runs: Sequence[Recorded]) -> Frame:
    """Range and crosshair for the curves of these runs."""
    last = max([_last_step(run) for run in runs] + [1.0])
    across = Range1d(start=0, end=last, bounds=(0, last), min_interval=min(10.0, last))
    return Frame(runs, across, marked(None, "height", dash="dotted"))


def marked(at: float | None, dimension: str, *, colour: str = MARK, dash: str = "dashed") -> Any:
    """A line across the whole plot: at a step (dimension `height`) or at a value (`width`)."""
    return Span(location=at, dimension=dimension, line_color=colour, line_dash=dash, line_width=1)


def _last_step(run: Recorded) -> float:
    ends = [
        float(table["step"][-1]) for table in (run.scalars, run.evaluations, run.probes) if "step" in table
    ]
    return max(ends, default=0.0)


def decimated(values: NDArray[np.float64], points: int = POINTS) -> NDArray[np.intp]:
    """Ascending indices of the first and last value and of each bucket's lowest and highest; all if few."""
    count = len(values)
    if count <= points:
        return np.arange(count)
    edges = np.linspace(0, count, points // 2 + 1).astype(np.intp)
    low, high = (np.where(np.isnan(values), fill, values) for fill in (np.inf, -np.inf))
    kept = [
        index for a, b in pairwise(edges) for index in (a + np.argmin(low[a:b]), a + np.argmax(high[a:b]))
    ]
    return np.unique(np.array([0, *kept, count - 1], dtype=np.intp))


def blank(frame: Frame, y_label: str, *, numbers: str | None = None, logarithmic: bool = False) -> Any:
    """An empty plot over updates. numbers: their format on the vertical axis."""
    plot = figure(
        height=HEIGHT,
        sizing_mode="stretch_width",
        x_range=frame.across,
        y_axis_type="log" if logarithmic else "linear",
        tools="box_zoom,xpan,reset,save",
        active_drag="box_zoom",
        toolbar_location="above",
        x_axis_label="update",
        y_axis_label=y_label,
        output_backend="canvas",
    )
    plot.window_axis = "x"  # the vertical range follows what the horizontal one shows
    plot.add_tools(CrosshairTool(overlay=frame.crosshair))
    plot.toolbar_inner = True
    plot.xaxis.formatter = NumeralTickFormatter(format="0,0")
    if numbers:
        plot.yaxis.formatter = NumeralTickFormatter(format=numbers)
    if logarithmic:
        plot.yaxis.ticker.mantissas = [1, 2, 5]
    plot.toolbar.tools[0].dimensions = "width"
    return plot


def columns_plot(
    frame: Frame,
    plot: Any,
    table_of: Callable[[Recorded], Columns],
    series: Sequence[Series],
    *,
    dots: bool = False,
    same_colour: bool = False,
    by: tuple[str, ...] = (),
) -> Any:
    """The plot with these series of every run; None when no run has any of them."""
    items: list[Any] = []
    for index, run in enumerate(frame.runs):
        table = table_of(run)
        present = [one for one in series if has(table, one.key)]
        source = source_of(run, table, present, by=by)
        drawn = lines(frame, plot, source, index, present, dots=dots, same_colour=same_colour)
        groups = [drawn] if same_colour and drawn else [[line] for line in drawn]
        items += named(frame, index, groups, [one.label for one in present[-len(groups) :]])
        hover(frame, plot, drawn[-1:], index, present)
    return finished(frame, plot, items)


def has(table: Columns, key: str) -> bool:
    """Whether the table has a number in this column."""
    return "step" in table and key in table and bool(np.any(np.isfinite(table[key])))


def source_of(run: Recorded, table: Columns, series: Sequence[Series], by: tuple[str, ...] = ()) -> Any:
    """The columns of these series, reduced. by: the columns whose extremes are kept (default: all)."""
    present = [one.key for one in series if has(table, one.key)]
    if not present:
        return ColumnDataSource({}, name=run.name)
    kept = np.unique(np.concatenate([decimated(table[key]) for key in by or present]))
    return ColumnDataSource(
        {key: _compact(key, table[key][kept]) for key in ("step", *present)}, name=run.name
    )


def _compact(key: str, values: Column) -> NDArray[Any]:
    # six digits are more than a screen shows, but steps stay exact
    with np.errstate(over="ignore"):
        return values if key == "step" else values.astype(np.float32)


def lines(
    frame: Frame,
    plot: Any,
    source: Any,
    index: int,
    series: Sequence[Series],
    *,
    dots: bool = False,
    same_colour: bool = True,
) -> list[Any]:
    """Draw the series that the source has."""
    drawn = []
    for place, one in enumerate(one for one in series if one.key in source.data):
        colour, dash = frame.pen(index, 0 if same_colour else place, one.dash)
        style = {"source": source, "y_range_name": one.axis, "alpha": one.alpha}
        drawn.append(
            plot.line("step", one.key, line_color=colour, line_dash=dash, line_width=one.width, **style)
        )
        if dots and len(source.data["step"]) <= 80:
            plot.scatter("step", one.key, color=colour, size=4, **style)
    return drawn


def named(frame: Frame, index: int, drawn: Sequence[Sequence[Any]], labels: Sequence[str]) -> list[Any]:
    """Entries of the legend, each for a group of lines, with the run's letter where there are two."""
    prefix = f"{LETTERS[index]}: " if frame.compares else ""
    return [
        LegendItem(label=prefix + label, renderers=list(reversed(lines)))
        for lines, label in zip(drawn, labels, strict=True)
    ]


def hover(frame: Frame, plot: Any, renderers: Sequence[Any], index: int, series: Sequence[Series]) -> None:
    """Add one tooltip per run. With two runs, the first is left of the mouse and the second right of it."""
    if not renderers:
        return
    rows = [("update", "@step{0,0}"), *((one.label, f"@{{{one.key}}}{{{one.digits}}}") for one in series)]
    if frame.compares:
        rows = [(f"run {LETTERS[index]}", _literal(renderers[0].data_source.name)), *rows]
    side = ("left", "right")[index] if frame.compares else "horizontal"
    plot.add_tools(HoverTool(renderers=list(renderers), mode="vline", tooltips=rows, attachment=side))


def _literal(text: str) -> str:
    """Text for a tooltip, in which @ and $ would begin a column's name."""
    return text.replace("@", "＠").replace("$", "＄")


def finished(frame: Frame, plot: Any, items: Sequence[Any]) -> Any:
    """The plot with its legend and the stage boundary; None when nothing was drawn."""
    if not items:
        return None
    for boundary in {run.boundary for run in frame.runs} - {None}:
        plot.add_layout(marked(boundary, "height"))
    per_row = len(items) if len(items) <= 4 else -(-len(items) // 2)
    legend = Legend(items=list(items), click_policy="hide", orientation="horizontal", ncols=min(per_row, 4))
    plot.add_layout(legend, "above")
    return plot
