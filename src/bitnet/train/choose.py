"""Which run directory a command means: a new one, one to continue, or none because it would change what a run
is.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from bitnet.errors import BitnetError, RunError
from bitnet.run.layout import RunLayout, check_run_id, list_runs
from bitnet.run.manifest import read_config
from bitnet.run.records import read_status
from bitnet.train.config import RunConfig
from bitnet.train.observe.trackers import MirrorName

Resume = Literal["auto", "never", "must"]


@dataclass(frozen=True, kw_only=True)
class StartOptions:
    """What is not part of the run's value: where it goes and how it is begun."""

    runs_dir: Path
    run_id: str | None = None
    resume: Resume = "auto"
    device: torch.device
    reserved_ids: frozenset[str] = frozenset()
    """Names that a run must not have (those of experiments)."""
    progress_to_stderr: bool = False
    mirrors: Sequence[MirrorName] = ()
    """Who else is told of every metric row."""


def choose_run(prefix: str, described: dict[str, Any], config: RunConfig, options: StartOptions) -> RunLayout:
    """The run directory to use, new or existing. prefix: beginning of a new run's id; described: its
    meta/config.json.
    """
    if options.run_id is not None:
        return _named_run(check_run_id(options.run_id, options.reserved_ids), described, config, options)
    if options.resume != "never":
        for layout in reversed(list_runs(options.runs_dir)):
            if (
                not differences(config.completed(stored_config(layout)), described)
                and state_of(layout) != "done"
            ):
                return layout
        if options.resume == "must":
            raise RunError(
                f"no unfinished run in {options.runs_dir} has this configuration; drop --resume must to "
                "begin one"
            )
    stamp = int(time.time())
    while (options.runs_dir / f"{prefix}_{stamp}").exists():
        stamp += 1
    return RunLayout(options.runs_dir / f"{prefix}_{stamp}")


def _named_run(run_id: str, described: dict[str, Any], config: RunConfig, options: StartOptions) -> RunLayout:
    layout = RunLayout(options.runs_dir / run_id)
    exists = layout.config.is_file()
    if exists and options.resume == "never":
        raise RunError(f"the run {run_id} exists and --resume is never; choose another --run-id")
    if not exists and options.resume == "must":
        raise RunError(
            f"there is no run {run_id} in {options.runs_dir} to resume; drop --resume must to begin it"
        )
    if not exists and layout.checkpoint_steps():
        raise RunError(
            f"{layout.config} is missing, but {run_id} has checkpoints; restore it from a copy, or choose "
            "another --run-id"
        )
    if exists:
        refuse_changed(layout, described, config)
    return layout


def stored_config(layout: RunLayout) -> dict[str, Any]:
    """meta/config.json, or nothing where it is damaged (then it equals no configuration)."""
    try:
        return read_config(layout)
    except BitnetError:
        return {}


def state_of(layout: RunLayout) -> str:
    """The state that status.json gives, or unknown."""
    try:
        return str(read_status(layout)["state"])
    except BitnetError:
        return "unknown"


def differences(stored: dict[str, Any], wanted: dict[str, Any], prefix: str = "") -> list[str]:
    """Fields whose values differ, as `training.seed: 1 -> 2`."""
    stored, wanted = json.loads(json.dumps([stored, wanted]))
    found: list[str] = []
    for key in sorted(stored.keys() | wanted.keys()):
        before, after = stored.get(key), wanted.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            found += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            found.append(f"{prefix}{key}: {before} -> {after}")
    return found


def refuse_changed(layout: RunLayout, described: dict[str, Any], config: RunConfig) -> None:
    """Raise RunError when a run's stored configuration differs from the one asked for."""
    changed = differences(config.completed(read_config(layout)), described)
    if changed:
        shown = "; ".join(changed[:6]) + (f"; and {len(changed) - 6} more" if len(changed) > 6 else "")
        raise RunError(
            f"the run {layout.run_id} was made with another configuration ({shown}); choose another --run-id "
            "or the old settings"
        )
