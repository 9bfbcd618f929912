"""Which run a command continues, and how it goes on from its newest good checkpoint."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from bitnet.errors import BitnetError, CheckpointError, DataError, RunError
from bitnet.files import read_json
from bitnet.run.checkpoint import Checkpoint, load_weights, newest_good
from bitnet.run.layout import RunLayout, check_run_id, list_runs
from bitnet.run.manifest import read_config, verify_run
from bitnet.run.metrics import cut_back, cut_to, tail, verify_extent
from bitnet.run.random_state import restore_random_states
from bitnet.run.records import read_status
from bitnet.run.sessions import record_session
from bitnet.train.config import RunConfig
from bitnet.train.session import Session, StartOptions

DIFFERENCES_SHOWN = 6


def choose_run(prefix: str, described: dict[str, Any], config: RunConfig, options: StartOptions) -> RunLayout:
    """The run directory to train in: the named one, an unfinished one of this configuration, or a new one.

    prefix: beginning of a new run's id; described: its meta/config.json. Raises RunError.
    """
    if options.run_id is not None:
        return _named_run(check_run_id(options.run_id, options.reserved_ids), described, config, options)

    if options.resume != "never":
        for layout in reversed(list_runs(options.runs_dir)):
            same = not differences(config.completed(_stored_config(layout)), described)
            if same and state_of(layout) != "done":
                return layout
    if options.resume == "must":
        raise RunError(
            f"no unfinished run in {options.runs_dir} has this configuration; drop --resume must to begin one"
        )

    stamp = int(time.time())
    while (options.runs_dir / f"{prefix}_{stamp}").exists():
        stamp += 1
    return RunLayout(options.runs_dir / f"{prefix}_{stamp}")


def _named_run(run_id: str, described: dict[str, Any], config: RunConfig, options: StartOptions) -> RunLayout:
    layout = RunLayout(options.runs_dir / run_id)
    if layout.config.is_file():
        if options.resume == "never":
            raise RunError(f"the run {run_id} exists and --resume is never; choose another --run-id")
        _refuse_changed(layout, described, config)
        return layout

    if options.resume == "must":
        raise RunError(
            f"there is no run {run_id} in {options.runs_dir} to resume; drop --resume must to begin it"
        )
    if layout.checkpoint_steps():
        raise RunError(
            f"{layout.config} is missing, but {run_id} has checkpoints; restore it from a copy, or choose "
            "another --run-id"
        )
    return layout


def _stored_config(layout: RunLayout) -> dict[str, Any]:
    """meta/config.json, or nothing where it is damaged (then it equals no configuration)."""
    try:
        return read_config(layout)
    except BitnetError:
        return {}


def state_of(layout: RunLayout) -> str:
    """The state in status.json, or unknown."""
    try:
        return str(read_status(layout)["state"])
    except BitnetError:
        return "unknown"


def differences(stored: dict[str, Any], wanted: dict[str, Any], prefix: str = "") -> list[str]:
    """Fields whose values differ, as `training.seed: 1 -> 2`."""
    stored, wanted = json.loads(json.dumps([stored, wanted]))  # tuples become lists, as in the stored file
    found: list[str] = []
    for key in sorted(stored.keys() | wanted.keys()):
        before, after = stored.get(key), wanted.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            found += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            found.append(f"{prefix}{key}: {before} -> {after}")
    return found


def _refuse_changed(layout: RunLayout, described: dict[str, Any], config: RunConfig) -> None:
    """Raise RunError where a run's stored configuration differs from the one asked for."""
    changed = differences(config.completed(read_config(layout)), described)
    if not changed:
        return
    more = len(changed) - DIFFERENCES_SHOWN
    shown = "; ".join(changed[:DIFFERENCES_SHOWN]) + (f"; and {more} more" if more > 0 else "")
    raise RunError(
        f"the run {layout.run_id} was made with another configuration ({shown}); choose another --run-id or "
        "the old settings"
    )


def resume(session: Session) -> Checkpoint | None:
    """Continue from the newest good checkpoint; None where the run has not begun."""
    layout, say = session.layout, session.say
    checkpoint = newest_good(layout, lambda problem: say(f"skipping a damaged checkpoint: {problem}"))
    if checkpoint is None:
        _refuse_lost_checkpoints(layout)
        return None

    verify_run(layout)
    check_data(session)
    restore(session, checkpoint)

    changed = record_session(layout, checkpoint.step, session.facts())
    if changed:
        say(
            f"resumed under other conditions ({'; '.join(changed)}): from here on the last digits may differ "
            "from those of an unbroken run"
        )
    return checkpoint


def _refuse_lost_checkpoints(layout: RunLayout) -> None:
    """Raise CheckpointError where a run without a good checkpoint has trained before."""
    if layout.checkpoint_steps():
        raise CheckpointError(
            f"no checkpoint of {layout.run_id} is whole; begin anew under another --run-id (nothing was "
            "deleted)"
        )
    if tail(layout.scalars).rows:
        raise CheckpointError(
            f"{layout.root} has metrics but no checkpoint; restore {layout.checkpoints}, or begin anew under "
            "another --run-id"
        )


def restore(session: Session, checkpoint: Checkpoint) -> None:
    """Put weights, optimizer state, random states and metric files back to the checkpoint."""
    load_weights(session.model, checkpoint)
    session.optimizers.zero_grad()
    session.optimizers.load_state_tensors(checkpoint.optimizer)
    try:
        restore_random_states(checkpoint.state["rng_states"])
        stored = checkpoint.state.get("loss_scale")
        if session.scaling is not None and stored is not None:
            session.scaling.load(stored)
    except (LookupError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise CheckpointError(
            f"the random states of step {checkpoint.step} cannot be restored ({type(error).__name__}: "
            f"{error}); delete that checkpoint to continue from the one before"
        ) from None
    _cut_lines(session.layout, checkpoint)


def _cut_lines(layout: RunLayout, checkpoint: Checkpoint) -> None:
    """Cut every file of lines back to the checkpoint, after all of them were checked against it."""
    extents = checkpoint.state.get("lines")
    if extents is None:  # a checkpoint made before they were recorded
        for path in layout.line_files():
            cut_back(path, checkpoint.step)
        return

    names = {path.relative_to(layout.root).as_posix(): path for path in layout.line_files()}
    missing = sorted(names.keys() - extents.keys())
    if missing:
        raise CheckpointError(
            f"the checkpoint of step {checkpoint.step} does not know {missing[0]}; delete it to continue "
            "from the one before"
        )
    # Nothing is cut before every file is known to be good, so that a refusal loses nothing.
    for name, path in names.items():
        verify_extent(path, extents[name])
    for name, path in names.items():
        cut_to(path, extents[name])


def check_data(session: Session) -> None:
    """Raise DataError where training rows or held-out rows are not those that the run began with."""
    layout, task = session.layout, session.task
    stored, now = _hashes(read_json(layout.fingerprint)), _hashes(task.source.fingerprint())
    changed = sorted(key for key in stored.keys() & now.keys() if stored[key] != now[key])

    written, held_out = session.eval_set(), task.frozen_evaluation()
    if len(written) != len(held_out) or not all(
        one.equals(other) for one, other in zip(written, held_out, strict=True)
    ):
        changed.append("the held-out rows")

    if changed:
        raise DataError(
            f"the data of {layout.run_id} is not what it began with ({', '.join(changed)} differ from "
            f"{layout.fingerprint}); restore the files that it was made from, or begin another run under "
            "another --run-id"
        )


def _hashes(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A fingerprint's hashes. Its names, counts and rates may be computed otherwise by a later version."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= _hashes(value, f"{prefix}{key}.")
        elif key.endswith("sha256") and key != "evaluation_sha256":  # load_frozen_set compares that one
            found[f"{prefix}{key}"] = value
    return found
