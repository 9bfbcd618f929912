"""The curves of runs as PNG, with matplotlib (extra `plot`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from bitnet.errors import ConfigError, DataError
from bitnet.run.layout import RunLayout, read_config
from bitnet.run.metrics import read_lines

XAxis = Literal["steps", "tokens", "time"]
Series = tuple[list[float], list[float]]


def plot_runs(layouts: Sequence[RunLayout], out: Path, x_axis: XAxis = "steps") -> None:
    """Loss, evaluation, rate and decay, gradient norm and throughput of one or several runs, overlaid."""
    plt = _matplotlib()
    figure, axes = plt.subplots(2, 2, figsize=(13, 8), constrained_layout=True)
    for index, layout in enumerate(layouts):
        rows = read_lines(layout.scalars).rows
        if not rows:
            raise DataError(f"the run {layout.run_id} has no metrics yet; wait for its first update")
        _draw(axes.flat, layout, rows, f"C{index}", x_axis)
    for axis, title in zip(axes.flat, ("loss (nats/token)", "learning rate", "gradient norm", "tokens/s"), strict=True):
        axis.set_title(title, loc="left", fontsize=10)
        axis.set_xlabel({"steps": "update", "tokens": "tokens", "time": "seconds of training"}[x_axis])
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes.flat[0].legend(fontsize=8, frameon=False)
    axes.flat[2].set_yscale("log")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)
    plt.close(figure)


def _matplotlib() -> Any:
    try:
        import matplotlib as mpl
    except ImportError:
        raise ConfigError("plots need matplotlib; install it with: pip install 'bitnet[plot]'") from None
    mpl.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _draw(axes: Any, layout: RunLayout, rows: list[dict[str, Any]], colour: str, x_axis: XAxis) -> None:
    loss, rate, norm, speed = axes
    xs = x_values(rows, x_axis)
    by_step = dict(zip((row["step"] for row in rows), xs, strict=True))
    losses = [_number(row.get("loss")) for row in rows]
    loss.plot(xs, losses, color=colour, alpha=0.2, linewidth=0.8)
    loss.plot(xs, smoothed(losses), color=colour, label=f"{layout.run_id}, training")
    evaluations = [row for row in read_lines(layout.evaluations).rows if row.get("eval_loss") is not None and row["step"] in by_step]
    if evaluations:
        points = [by_step[row["step"]] for row in evaluations]
        loss.plot(points, [row["eval_loss"] for row in evaluations], "o--", color=colour, markersize=4, label=f"{layout.run_id}, held out")
    rate.plot(xs, [_number(row.get("lr")) for row in rows], color=colour)
    norm.plot(xs, [_number(row.get("grad_norm")) for row in rows], color=colour, linewidth=0.8)
    speed.plot(xs, smoothed([_number(row.get("tokens_per_sec")) for row in rows]), color=colour)
    boundary = read_config(layout).get("training", {}).get("stage1_end")
    if boundary in by_step:
        for axis in (loss, rate):
            axis.axvline(by_step[boundary], color=colour, linestyle=":", linewidth=1)


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


def smoothed(values: Sequence[float], weight: float = 0.95) -> list[float]:
    """Exponential moving average without start-up bias (Adam's correction); gaps are passed over."""
    average, mass, out = 0.0, 0.0, []
    for value in values:
        if value == value:
            average, mass = weight * average + (1 - weight) * value, weight * mass + (1 - weight)
        out.append(average / mass if mass else float("nan"))
    return out


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")
