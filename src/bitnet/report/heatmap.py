"""Heat maps of matrices x updates: where in the model the zeros are, and where codes still flip.

A cell spans the updates since the probe before it. The maps of two runs share one colour scale.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from bokeh.models import (
    ColorBar,
    ColumnDataSource,
    FixedTicker,
    HoverTool,
    LinearColorMapper,
    LogColorMapper,
    NumeralTickFormatter,
    Range1d,
)
from bokeh.plotting import figure
from numpy.typing import NDArray

from bitnet.report.read_run import Column, Columns, Recorded, spread

CELLS = 8000  # per map: 32 matrices at 250 probes; names in each cell make it about 300 kB
ROW_PX, LEAST_ROW_PX, MOST_MAP_PX = 19, 8, 900
LABELLED_ROWS = 48  # above this only the first matrix of each layer is named
PALETTE = "Viridis256"
_MATRIX = re.compile(r"L(\d+)_(.+)_zero_pct")
_ORDER = ("attn_qkv", "attn_out", "ffn_gate_up", "ffn_down")  # as the data flows through a block


def matrices(table: Columns) -> list[str]:
    """Names of the ternary matrices in a probe table (L0_attn_qkv, ...), in the order of the forward pass."""
    found = [(int(match.group(1)), match.group(2)) for name in table if (match := _MATRIX.fullmatch(name))]
    places = {name: place for place, name in enumerate(_ORDER)}
    return [
        f"L{layer}_{part}"
        for layer, part in sorted(found, key=lambda one: (one[0], places.get(one[1], len(places)), one[1]))
    ]


def zero_share(runs: Sequence[Recorded]) -> list[Any]:
    """One map of the share of zeros for each run; None for a run without probes."""
    values = _all_values(runs, "zero_pct")
    if not values.size:
        return [None] * len(runs)
    low, high = float(values.min()), float(values.max())
    mapper = LinearColorMapper(palette=PALETTE, low=low, high=max(high, low + 1e-6))
    return [_map(run, "zero_pct", "zeros", mapper) for run in runs]


def flipped_share(runs: Sequence[Recorded]) -> list[Any]:
    """One map of the share of codes flipped since the last probe for each run. Colours are logarithmic."""
    values = _all_values(runs, "flipped_pct")
    positive = values[values > 0]
    if not values.size:
        return [None] * len(runs)
    low, high = (float(positive.min()), float(positive.max())) if positive.size else (1e-6, 1.0)
    mapper = LogColorMapper(palette=PALETTE, low=min(low, high / 10), high=high)
    return [_map(run, "flipped_pct", "flipped", mapper) for run in runs]


def _all_values(runs: Sequence[Recorded], what: str) -> Column:
    keys = [(run.probes, f"{name}_{what}") for run in runs for name in matrices(run.probes)]
    tables = [probes[key] for probes, key in keys if key in probes]
    values = np.concatenate(tables) if tables else np.empty(0)
    return values[np.isfinite(values)]


def _map(run: Recorded, what: str, label: str, mapper: Any) -> Any:
    """The map of one run; None if it has no such values."""
    names = [name for name in matrices(run.probes) if f"{name}_{what}" in run.probes]
    if not names:
        return None
    plot = _blank(names, run.probes["step"])
    fill = {"field": "value", "transform": mapper}
    source = ColumnDataSource(_cells(run.probes, names, what))
    cells = plot.quad("left", "right", "bottom", "top", source=source, fill_color=fill, line_color=fill)
    rows = [("matrix", "@name"), ("update", "@right{0,0}"), (label, "@value{0.000%}")]
    plot.add_tools(HoverTool(renderers=[cells], tooltips=rows))
    percent = NumeralTickFormatter(format="0.[000]%")
    bar = ColorBar(color_mapper=mapper, width=10, formatter=percent, border_line_color=None)
    plot.add_layout(bar, "right")
    return plot


def _cells(table: Columns, names: Sequence[str], what: str) -> dict[str, Any]:
    """One entry per (matrix, probe) with a value. Probes are thinned if there are too many."""
    kept = spread(len(table["step"]), max(CELLS // len(names), 2))
    right = table["step"][kept]
    left = np.concatenate([[right[0] - _first_width(right)], right[:-1]])
    values = np.stack([table[f"{name}_{what}"][kept] for name in names])  # (matrices, probes)
    rows, columns = np.nonzero(np.isfinite(values))
    return {
        "left": left[columns].astype(np.float32),
        "right": right[columns].astype(np.float32),
        "bottom": (rows + 0.5).astype(np.float32),
        "top": (rows - 0.5).astype(np.float32),
        "value": values[rows, columns].astype(np.float32),
        "name": [names[row] for row in rows.tolist()],
    }


def _first_width(steps: NDArray[np.float64]) -> float:
    """Width of the first cell, which has no probe before it: that of the second."""
    return float(steps[1] - steps[0]) if len(steps) > 1 else max(float(steps[0]), 1.0)


def _blank(names: Sequence[str], steps: Column) -> Any:
    row_px = min(ROW_PX, max(LEAST_ROW_PX, MOST_MAP_PX // len(names)))
    start = float(steps[0]) - _first_width(steps)
    plot = figure(
        height=70 + row_px * len(names),
        sizing_mode="stretch_width",
        tools="save",
        toolbar_location="above",
        x_axis_label="update",
        x_range=Range1d(start, float(steps[-1])),
        y_range=Range1d(len(names) - 0.5, -0.5),
    )
    labelled = [
        row
        for row, name in enumerate(names)
        if len(names) <= LABELLED_ROWS or row == 0 or _layer(name) != _layer(names[row - 1])
    ]
    plot.yaxis.ticker = FixedTicker(ticks=labelled)
    plot.yaxis.major_label_overrides = {row: names[row].replace("_", " ") for row in labelled}
    plot.grid.visible = False
    plot.toolbar_inner = True
    plot.xaxis.formatter = NumeralTickFormatter(format="0,0")
    return plot


def _layer(name: str) -> str:
    return name.split("_", 1)[0]
