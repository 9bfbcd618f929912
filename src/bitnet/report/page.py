"""`bitnet report`: one HTML page about one run, or two runs compared. Needs no network and no other file.

The curves are Bokeh's (extra `report`), because its whole script is 1.27 MB (version 3.9) and can be written
into the page: plotly's (7.1) is 4.8 MB, which leaves nothing of the 5 MB that a page may have, and its Python
package holds no smaller bundle. The page forbids itself every request by its content security policy, and
Jinja2 (which Bokeh needs anyway) escapes every text that comes from a run.

This file puts the page together. Reading is recorded.py, words and numbers tables.py, pictures frame.py,
curves.py and heatmap.py.
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
INK, GRID = (
    "#868d98",
    "#8a8f98",
)  # legible on the light and on the dark page, so that plots need no second theme
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"


@dataclass(frozen=True)
class Picture:
    """One figure of the page. html: where Bokeh draws; empty when nothing was recorded for it."""

    title: str
    about: str
    html: str
    wide: bool = False


def write_page(layouts: Sequence[RunLayout], out: Path) -> list[Recorded]:
    """Write the page for one or two runs and return what was read. Raises ConfigError without the extra, or
    where `out` cannot be.
    """
    runs = [read_run(layout) for layout in layouts]
    html = page(runs)
    try:
        write_atomic(out, html)
    except OSError as error:
        raise ConfigError(
            f"{out} cannot be written ({error.strerror}); choose another place with --out"
        ) from None
    return runs


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
    bokeh_js = resources.Resources(mode="inline", components=["bokeh"]).js_raw[
        0
    ]  # what follows it only sets a log level
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
    others = curves.metrics(frame, shares=False)
    drawn = [
        (
            Picture(
                "Loss",
                "Training loss of every update and smoothed; held-out loss at each evaluation.",
                "",
                wide=True,
            ),
            curves.loss(frame),
        ),
        (
            Picture("Held-out cases", "The experiment's own metrics; dashed: the goal.", ""),
            curves.metrics(frame, shares=True),
        ),
        (Picture("Learning rate and weight decay", "Dashed: the stage boundary.", ""), curves.rates(frame)),
        (Picture("Gradient norm", "Before clipping, logarithmic.", ""), curves.gradient_norm(frame)),
        (Picture("Throughput", "Time between updates is not counted.", ""), curves.throughput(frame)),
        (
            Picture("Ternary codes", "Shares of −1, 0 and +1 over all ternary weights.", ""),
            curves.ternary_shares(frame),
        ),
        (Picture("Flips", "Share of codes that changed since the last probe.", ""), curves.flips(frame)),
    ]
    return (
        [*drawn, (Picture("Other metrics", "The experiment's metrics that are not shares.", ""), others)]
        if others
        else drawn
    )


def _maps(runs: Sequence[Recorded]) -> list[tuple[Picture, Any]]:
    from bitnet.report import heatmap
    from bitnet.report.axes import LETTERS

    kinds = (
        ("Zeros", "Share of zeros in each ternary matrix.", heatmap.zero_share(runs)),
        (
            "Flips",
            "Share of codes that changed since the last probe, logarithmic.",
            heatmap.flipped_share(runs),
        ),
    )
    return [
        (Picture(title + (f", {letter}" if len(runs) > 1 else ""), about, "", wide=True), model)
        for title, about, models in kinds
        for letter, model in zip(LETTERS, models, strict=False)
    ]


def _theme() -> dict[str, Any]:
    """Bokeh's look: no boxes, one quiet ink, the page's font."""
    text = {"text_font": FONT, "text_color": INK}
    axis = {f"major_label_{key}": value for key, value in text.items()} | {
        f"axis_label_{key}": value for key, value in text.items()
    }
    quiet = {"axis_line_color": None, "major_tick_line_color": None, "minor_tick_line_color": None}
    sizes = {
        "major_label_text_font_size": "11px",
        "axis_label_text_font_size": "11px",
        "axis_label_text_font_style": "normal",
    }
    legend = {f"label_{key}": value for key, value in text.items()} | {
        "label_text_font_size": "11px",
        "padding": 2,
        "spacing": 8,
        "margin": 0,
    }
    return {
        "attrs": {
            "Plot": {
                "background_fill_color": None,
                "border_fill_color": None,
                "outline_line_color": None,
                "min_border_top": 4,
            },
            "Axis": {**axis, **quiet, **sizes},
            "Grid": {"grid_line_color": GRID, "grid_line_alpha": 0.18},
            "Legend": {
                **legend,
                "background_fill_color": None,
                "border_line_color": None,
                "inactive_fill_color": None,
                "glyph_width": 16,
            },
            "ColorBar": {
                "background_fill_color": None,
                "major_label_text_color": INK,
                "major_label_text_font": FONT,
                "major_label_text_font_size": "11px",
                "major_tick_line_color": None,
                "bar_line_color": None,
            },
            "Toolbar": {"logo": None, "autohide": True},
        }
    }
