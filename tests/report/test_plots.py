"""The picture of `bitnet plot`, read as a person reads it: by its labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from synthetic import write_run

from bitnet.report import plots
from bitnet.run.layout import RunLayout


@pytest.fixture
def figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The figure of one run, caught before it is written."""
    drawn: list[Any] = []
    monkeypatch.setattr(plots, "save_picture", lambda plt, figure, out: drawn.append(figure))
    plots.plot_runs([RunLayout(write_run(tmp_path / "run", 60))], tmp_path / "plot.png")
    drawn[0].canvas.draw()
    return drawn[0]


def test_tick_labels_are_plain_numbers(figure: Any) -> None:
    r"""The logarithmic axis of the gradient norm once read `$\mathdefault{10^{-1}}$`, since names are not parsed as mathematics."""
    for axis in figure.axes:
        labels = [label.get_text() for label in (*axis.get_xticklabels(), *axis.get_yticklabels(which="both"))]
        assert not [text for text in labels if "$" in text], axis.get_title(loc="left")


def test_each_panel_has_its_title(figure: Any) -> None:
    assert [axis.get_title(loc="left") for axis in figure.axes[: len(plots.PANELS)]] == list(plots.PANELS)
