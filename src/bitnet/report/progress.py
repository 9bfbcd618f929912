"""The state of a run, read from its files while it runs, after it ended, or after it was killed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bitnet.errors import BitnetError, NotFoundError
from bitnet.files import is_locked
from bitnet.run.layout import RunLayout
from bitnet.run.manifest import read_config
from bitnet.run.metrics import last_line, tail
from bitnet.run.records import read_status

SHOWN_MODES = ("greedy", "stress")
SHOWN_SHARES = ("step", "neg1_pct", "zero_pct", "pos1_pct", "flipped_pct")
RATE_ROWS = 50  # updates in the mean of the rate and of the remaining time


def run_summary(layout: RunLayout) -> dict[str, Any]:
    """Everything that `bitnet status` shows. Only the ends of files are read, which is fast for any run."""
    damage: list[str] = []
    config = _or_empty(lambda: read_config(layout), damage)
    status = _or_empty(lambda: read_status(layout), damage)
    training = config.get("training", {})
    scalars = tail(layout.scalars)
    last = scalars.rows[-1] if scalars.rows else {}
    total = training.get("total_steps") or status.get("total_steps") or 0
    step = last.get("step", status.get("step", 0))
    state, why = ("damaged", damage[0]) if damage else _state(layout, status)
    step_ms = _mean([row.get("step_time_ms") for row in scalars.rows[-RATE_ROWS:]])
    quantization = last_line(layout.quantization) or {}
    return {
        "run": layout.run_id,
        "experiment": config.get("experiment", "?"),
        "variant": config.get("variant", "?"),
        "state": state,
        "why": why,
        "step": step,
        "total_steps": total,
        "stage": 1 if step <= training.get("stage1_end", 0) else 2,
        "loss": last.get("loss"),
        "lr": last.get("lr"),
        "grad_norm": last.get("grad_norm"),
        "tokens_per_sec": _mean([row.get("tokens_per_sec") for row in scalars.rows[-RATE_ROWS:]]),
        "eta_s": (total - step) * step_ms / 1e3 if step_ms is not None and state == "running" else None,
        "evaluation": last_line(layout.evaluations),
        "ternary": {key: quantization[key] for key in SHOWN_SHARES if key in quantization},
        "samples": _samples(layout),
        "anomalies": [folder.name for folder in layout.anomaly_folders()],
        "checkpoints": layout.checkpoint_steps(),
        "unreadable_lines": sum(tail(path).skipped for path in layout.line_files()),
    }


def _samples(layout: RunLayout) -> list[dict[str, Any]]:
    """The newest greedy sample and the stressed one of the same prompt, whose text is meant to be random."""
    rows = tail(layout.samples).rows
    newest = [
        row for row in rows if row["step"] == rows[-1]["step"] and row.get("prompt") == rows[-1].get("prompt")
    ]
    chosen = [row for mode in SHOWN_MODES for row in newest if row.get("mode") == mode]
    return [{key: row.get(key) for key in ("step", "mode", "prompt", "generated_text")} for row in chosen]


def _mean(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if isinstance(value, int | float)]
    return sum(numbers) / len(numbers) if numbers else None


def _or_empty(read: Callable[[], dict[str, Any]], damage: list[str]) -> dict[str, Any]:
    """The content of a file, or {} if it is damaged, which is added to `damage`."""
    try:
        return read()
    except NotFoundError:  # a run that has just begun has no status yet
        return {}
    except BitnetError as error:
        damage.append(str(error))
        return {}


def _state(layout: RunLayout, status: dict[str, Any]) -> tuple[str, str | None]:
    """The recorded state and its reason; `killed` if it is running but no process holds the lock."""
    state = status.get("state", "unknown")
    if state == "running" and not is_locked(layout.lock):
        return (
            "killed",
            "the process ended without saying so; the same train command continues from the last checkpoint",
        )
    return state, status.get("why")
