"""Where a run stands, read from its files; works while it runs, after it ended, and after it was killed."""

from __future__ import annotations

import fcntl
from typing import Any

from bitnet.errors import BitnetError
from bitnet.run.layout import RunLayout, read_config, read_json
from bitnet.run.metrics import last_line


def run_summary(layout: RunLayout) -> dict[str, Any]:
    """run, experiment, variant, state, why, step, total_steps, loss, tokens_per_sec, eta_s, evaluation, checkpoints."""
    config, status = _or_empty(layout, "config"), _or_empty(layout, "status")
    last = last_line(layout.scalars) or {}
    total = config.get("training", {}).get("total_steps") or status.get("total_steps") or 0
    step = last.get("step", status.get("step", 0))
    state, why = _state(layout, status)
    remaining = (total - step) * last["step_time_ms"] / 1e3 if last.get("step_time_ms") and state == "running" else None
    boundary = config.get("training", {}).get("stage1_end", 0)
    return {
        "run": layout.run_id,
        "experiment": config.get("experiment", "?"),
        "variant": config.get("variant", "?"),
        "state": state,
        "why": why,
        "step": step,
        "total_steps": total,
        "stage": 1 if step <= boundary else 2,
        "loss": last.get("loss"),
        "lr": last.get("lr"),
        "grad_norm": last.get("grad_norm"),
        "tokens_per_sec": last.get("tokens_per_sec"),
        "eta_s": remaining,
        "evaluation": last_line(layout.evaluations),
        "checkpoints": layout.checkpoint_steps(),
    }


def _or_empty(layout: RunLayout, which: str) -> dict[str, Any]:
    try:
        return read_config(layout) if which == "config" else read_json(layout.status)
    except BitnetError:
        return {}


def _state(layout: RunLayout, status: dict[str, Any]) -> tuple[str, str | None]:
    """The recorded state; `killed` when it says running but nobody holds the lock."""
    state = status.get("state", "unknown")
    if state == "running" and not lock_is_held(layout):
        return "killed", "the process ended without saying so; the same train command continues from the last checkpoint"
    return state, status.get("why")


def lock_is_held(layout: RunLayout) -> bool:
    """Whether a live process is training this run."""
    try:
        with layout.lock.open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
