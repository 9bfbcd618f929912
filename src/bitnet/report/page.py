"""`bitnet report`: one HTML page about one run, or two runs compared. Needs no network and no other file.

Bokeh (extra `report`) draws the curves, because its whole script is 1.27 MB (version 3.9) and can be written
into the page. A page may have 5 MB, and the script of plotly (7.1) alone is 4.8 MB. A content security policy
forbids the page every request. Jinja2, which Bokeh needs anyway, escapes every text that comes from a run.

This file puts the page together. read_run.py reads, tables.py has words and numbers, axes.py, curves.py and
heatmap.py have the pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitnet.errors import ConfigError
from bitnet.files import write_atomic
from bitnet.report import tables
from bitnet.report.read_run import Recorded, read_run
from bitnet.run.layout import RunLayout

TEMPLATE = Path(__file__).parent / "template"
# both are legible on the light and on the dark page, so plots need no second theme
INK, GRID = "#868d98", "#8a8f98"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"


@dataclass(frozen=True)
class Picture:
    """One figure of the page. html: the place where Bokeh draws; empty if nothing was recorded for it."""

    title: str
    about: str
    html: str
    wide: bool = False


def write_page(layouts: Sequence[RunLayout], out: Path) -> list[Recorded]:
    """Write the page for one or two runs, and return them. Raises ConfigError without the extra."""
    runs = [read_run(layout) for layout in layouts]
    write_text(out, page(runs))
    return runs


def write_text(out: Path, text: str) -> None:
    """Write a page or a model card. Raises ConfigError if `out` cannot be written."""
    try:
        write_atomic(out, text)
    except OSError as error:
        problem = f"{out} cannot be written ({error.strerror}); choose another place with --out"
        raise ConfigError(problem) from None


def page(runs: Sequence[Recorded]) -> str:
    """The HTML of the page."""
    jinja2, resources = _need_extra()
    curves, maps, script = _pictures(runs)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    # a second script, which is left out, only sets a log level
    bokeh_js = resources.Resources(mode="inline", components=["bokeh"]).js_raw[0]
    html: str = environment.get_template("page.html").render(
        runs=runs,
        tables=tables,
        curves=curves,
        maps=maps,
        samples=tables.sample_tables(runs),
        style=(TEMPLATE / "page.css").read_text(encoding="utf-8"),
        script=(TEMPLATE / "page.js").read_text(encoding="utf-8"),
        bokeh_js=bokeh_js,
        bokeh_script=script,
    )
    return html


def _need_extra() -> tuple[Any, Any]:
    try:
        import jinja2
        from bokeh import resources
    except ImportError:
        raise ConfigError(
            "the report needs bokeh and jinja2; install them with: pip install 'bitnet[report]'"
        ) from None
    return jinja2, resources


def _pictures(runs: Sequence[Recorded]) -> tuple[list[Picture], list[Picture], str]:
    """Curves, heat maps, and the script that draws them all."""
    from bokeh.embed import components
    from bokeh.themes import Theme

    drawn = [*_curves(runs), *_maps(runs)]
    models = {str(place): model for place, (_, model) in enumerate(drawn) if model is not None}
    script, places = components(models, wrap_script=False, theme=Theme(json=_theme())) if models else ("", {})
    pictures = [
        Picture(one.title, one.about, places.get(str(place), ""), one.wide)
        for place, (one, _) in enumerate(drawn)
    ]
    maps = 2 * len(runs)
    return pictures[:-maps], pictures[-maps:], script


def _curves(runs: Sequence[Recorded]) -> list[tuple[Picture, Any]]:
    from bitnet.report import curves
    from bitnet.report.axes import shared_frame

    frame = shared_frame(runs)
    loss = "Training loss of every update and smoothed; held-out loss at each evaluation."
    other_metrics = curves.metrics(frame, shares=False)
    drawn = [
        ("Loss", loss, curves.loss(frame)),
        (
            "Held-out cases",
            "The experiment's own metrics; dashed: the goal.",
            curves.metrics(frame, shares=True),
        ),
        ("Learning rate and weight decay", "Dashed: the stage boundary.", curves.rates(frame)),
        ("Gradient norm", "Before clipping, logarithmic.", curves.gradient_norm(frame)),
        ("Throughput", "Time between updates is not counted.", curves.throughput(frame)),
        ("Ternary codes", "Shares of −1, 0 and +1 over all ternary weights.", curves.ternary_shares(frame)),
        ("Flips", "Share of codes that changed since the last probe.", curves.flips(frame)),
    ]
    if other_metrics:
        drawn.append(("Other metrics", "The experiment's metrics that are not shares.", other_metrics))
    return [(Picture(title, about, "", wide=title == "Loss"), plot) for title, about, plot in drawn]


def _maps(runs: Sequence[Recorded]) -> list[tuple[Picture, Any]]:
    from bitnet.report import heatmap
    from bitnet.report.axes import LETTERS

    zeros = "Share of zeros in each ternary matrix."
    flips = "Share of codes that changed since the last probe, logarithmic."
    kinds = (("Zeros", zeros, heatmap.zero_share(runs)), ("Flips", flips, heatmap.flipped_share(runs)))
    return [
        (Picture(title + (f", {letter}" if len(runs) > 1 else ""), about, "", wide=True), model)
        for title, about, models in kinds
        for letter, model in zip(LETTERS, models, strict=False)
    ]


def _theme() -> dict[str, Any]:
    """Bokeh's look: no boxes, one muted colour of text, the page's font."""

    def text(part: str, **more: Any) -> dict[str, Any]:
        style = {"text_font": FONT, "text_color": INK, "text_font_size": "11px", **more}
        return {f"{part}{key}": value for key, value in style.items()}

    without_lines = dict.fromkeys(("axis_line_color", "major_tick_line_color", "minor_tick_line_color"))
    without_box = dict.fromkeys(("background_fill_color", "border_fill_color", "outline_line_color"))
    legend_box = dict.fromkeys(("background_fill_color", "border_line_color", "inactive_fill_color"))
    bar_box = dict.fromkeys(("background_fill_color", "major_tick_line_color", "bar_line_color"))
    return {
        "attrs": {
            "Plot": {**without_box, "min_border_top": 4},
            "Axis": {
                **text("major_label_"),
                **text("axis_label_", text_font_style="normal"),
                **without_lines,
            },
            "Grid": {"grid_line_color": GRID, "grid_line_alpha": 0.18},
            "Legend": {
                **text("label_"),
                **legend_box,
                "padding": 2,
                "spacing": 8,
                "margin": 0,
                "glyph_width": 16,
            },
            "ColorBar": {**text("major_label_"), **bar_box},
            "Toolbar": {"logo": None, "autohide": True},
        }
    }
