"""Optional copies of the metric rows in TensorBoard, Weights & Biases or Trackio.

The run directory stays the record that everything else reads. Each tracker is a listener that is called with
the name of a file (`scalars`, `quantization`, `eval_results`) and a row. Numbers are passed on; samples (but
for TensorBoard) and lists are not. Nothing goes over the network unless the user's own settings say so:
Weights & Biases starts offline unless WANDB_MODE is set, and Trackio keeps a local database.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from bitnet.errors import ConfigError
from bitnet.run.layout import RunLayout
from bitnet.run.metrics import Listener

TrackerName = Literal["tensorboard", "wandb", "trackio"]
PROJECT = "bitnet"


def numbers_of(stem: str, row: dict[str, Any]) -> dict[str, float]:
    """`scalars/loss` and so on: what a tracker can draw."""
    return {
        f"{stem}/{key}": float(value)
        for key, value in row.items()
        if key != "step" and isinstance(value, int | float)
    }


@contextmanager
def open_tracker(name: TrackerName, layout: RunLayout, config: dict[str, Any]) -> Iterator[Listener]:
    """A listener for this run, closed at the end. Raises ConfigError when the package is not installed."""
    package = _import(name)
    if name == "tensorboard":
        with _tensorboard(layout) as listener:
            yield listener
        return
    settings: dict[str, Any] = {"project": PROJECT, "name": layout.run_id, "config": config}
    # Nothing leaves this machine unless the user's own environment asks for it.
    if name == "wandb":
        settings |= {"dir": str(layout.root), "mode": os.environ.get("WANDB_MODE", "offline")}
    run = package.init(**settings)

    def listen(stem: str, row: dict[str, Any]) -> None:
        if stem != "samples":
            run.log(numbers_of(stem, row), step=row["step"])

    try:
        yield listen
    finally:
        run.finish()


@contextmanager
def _tensorboard(layout: RunLayout) -> Iterator[Listener]:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(layout.root / "tensorboard"))

    def listen(stem: str, row: dict[str, Any]) -> None:
        if stem == "samples":
            writer.add_text(f"{row['mode']}/{row['prompt']}", row["generated_text"], row["step"])
            return
        for key, value in numbers_of(stem, row).items():
            writer.add_scalar(key, value, row["step"])

    try:
        yield listen
    finally:
        writer.close()


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ConfigError(
            f"--mirror {name} needs the package {name}; install it with: pip install 'bitnet[{name}]'"
        ) from None
