"""A plan that is too short, and a model that is too small for its task."""

from __future__ import annotations

from pathlib import Path

from planted.fault import by_settings, on_run
from planted.runs import small_run


@on_run("far too little training", "training", "criteria")
def _(folder: Path) -> list[str]:
    return small_run(folder, "--num-steps", "6")


by_settings(
    "a plan far too short",
    "training",
    "planned tokens",
    "--device cpu --num-steps 4",
    base=["arithmetic", "--variant", "quick"],
)
by_settings("far too small for its vocabulary", "size", "vocabulary", "--model.vocab-size 32000")
