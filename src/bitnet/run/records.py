"""What the JSON of a run must hold for its readers: names and types, checked once, when a file is read.

A key that is not named here passes as it is; schema.py explains them all. Not here: the settings, which
become dataclasses (nn/config.py, train/config.py), and whether a file is the one that was written
(manifest.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_type_hints

from bitnet.files import read_json
from bitnet.nn.config import BitNetConfig
from bitnet.run.layout import RunLayout
from bitnet.run.schema import EVALUATION, MATRIX, SAMPLES, SCALARS
from bitnet.typed import check_types

CONFIG = {
    "experiment": str,
    "variant": str,
    "experiment_file": str | None,
    "model": dict,
    "training": dict,
    "data": dict,
}
TRAINING = dict.fromkeys(
    ("total_steps", "stage1_end", "seq_len", "batch_size", "tokens_per_step", "total_tokens", "seed"), int
)
STATUS = {
    "state": str,
    "why": str | None,
    "step": int,
    "total_steps": int,
    "started_unix": float,
    "updated_unix": float,
}
VERDICT = {
    "run": str,
    "step": int,
    "verdict": str,
    "metrics": dict[str, float | None],
    "criteria": list[dict[str, Any]],
    "seconds": float,
    "engine": str,
}
CRITERION = {"name": str, "metric": str, "value": float | None, "threshold": float, "met": bool}
STATE = {
    "step": int,
    "tokens_seen": int,
    "loss": float | None,
    "rng_states": dict,
    "refused_in_a_row": int,
    "skipped_data": list[tuple[int, int]],
    "lines": dict[str, dict[str, Any]],
}
EXTENT = {"bytes": int, "lines": int, "sha256": str}
TEXTS = frozenset({"prompt", "mode", "generated_text", "anomaly_flag", "refused"})
"""Keys of the lines of metrics and samples that hold text."""
LISTS = frozenset({"generated_ids", "logits_first_10", "scale"})
NUMBERS = frozenset({*SCALARS, *MATRIX, *EVALUATION, *SAMPLES}) - TEXTS - LISTS - {"non_finite"}
MAX_STEP = 2**53  # up to here every whole number is exact as a float, in which plots hold steps


def check_config(config: dict[str, Any], where: str) -> dict[str, Any]:
    """meta/config.json, with its sections. Raises DataError."""
    check_types(config, CONFIG, where)
    if "model" in config:
        check_types(config["model"], get_type_hints(BitNetConfig), f"{where}, section model,")
    check_types(config.get("training", {}), TRAINING, f"{where}, section training,")
    return config


def read_status(layout: RunLayout) -> dict[str, Any]:
    """status.json. Raises NotFoundError or DataError."""
    return check_types(read_json(layout.status), STATUS, str(layout.status), required=("state",))


def read_verdict(layout: RunLayout) -> dict[str, Any]:
    """eval/verdict.json. Raises NotFoundError or DataError."""
    where = str(layout.verdict)
    verdict = check_types(
        read_json(layout.verdict), VERDICT, where, required=("run", "step", "verdict", "metrics", "criteria")
    )
    for row in verdict["criteria"]:
        check_types(row, CRITERION, f"{where}, a criterion", required=("name", "value", "met"))
    return verdict


def read_state(path: Path) -> dict[str, Any]:
    """state.json of a checkpoint. Raises NotFoundError or DataError."""
    state = check_types(read_json(path), STATE, str(path), required=("step",))
    for extent in state.get("lines", {}).values():
        check_types(extent, EXTENT, f"{path}, lines,", required=EXTENT)
    return state


def is_row(row: Any) -> bool:
    """Whether this is a line of metrics or samples: an object with a step, and values of the right types."""
    if not isinstance(row, dict) or type(row.get("step")) is not int or not 0 <= row["step"] < MAX_STEP:
        return False
    return all(value is None or _usable(key, value) for key, value in row.items())


def _usable(key: str, value: Any) -> bool:
    """Whether a value has the type that its key asks for. Other keys are an experiment's own metrics."""
    if key in TEXTS:
        return isinstance(value, str)
    if type(value) in (int, float):
        return bool(abs(value) < 1e300)  # NaN is not below anything
    return key not in NUMBERS and (key not in LISTS or isinstance(value, list))
