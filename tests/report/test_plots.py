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


@pytest.mark.slow
def test_tick_labels_are_plain_numbers(figure: Any) -> None:
    r"""The logarithmic axis of the gradient norm once read `$\mathdefault{10^{-1}}$`, since names are not
    parsed as mathematics.
    """
    for axis in figure.axes:
        labels = [
            label.get_text() for label in (*axis.get_xticklabels(), *axis.get_yticklabels(which="both"))
        ]
        assert not [text for text in labels if "$" in text], axis.get_title(loc="left")


@pytest.mark.slow
def test_each_panel_has_its_title(figure: Any) -> None:
    assert [axis.get_title(loc="left") for axis in figure.axes[: len(plots.PANELS)]] == list(plots.PANELS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "line",
    [
        '{"step": 1}',
        '{"step": 1, "loss": 1.0, "grad_norm": 0.0}',
        '{"step": 1, "loss": 1.0, "grad_norm": -1.0}',
    ],
)
def test_a_run_without_a_gradient_norm_above_zero_is_drawn(line: str, tmp_path: Path) -> None:
    """A logarithmic axis has no place for it, and matplotlib raised ValueError when the picture was saved."""
    layout = RunLayout(write_run(tmp_path / "run", 3))
    layout.scalars.write_text(line + "\n")
    plots.plot_runs([layout], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").is_file()
