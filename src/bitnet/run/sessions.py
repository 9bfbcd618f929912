"""meta/sessions.jsonl: one line for each process that trained a run, with the conditions that it trained
under.

A result repeats bit for bit only for equal threads, torch version and device. A resumed run whose conditions
changed is still a valid run; this file says from which update on they were others.
"""

from __future__ import annotations

import json
import os
from typing import Any

from bitnet.errors import BitnetError
from bitnet.files import read_json
from bitnet.run.layout import RunLayout
from bitnet.run.metrics import last_line

CONDITIONS = tuple(
    """
    threads torch_version device cpu_model gpu_model gpu_count
    linear_product input_gradient weight_gradient gradient_dtype compiled fused_loss fused_blocks
""".split()
)
RECORDED = ("timestamp_utc", "git_commit", "git_dirty", "python_version", "platform")


def record_session(layout: RunLayout, step: int, facts: dict[str, Any]) -> list[str]:
    """Append a line, and return what differs from the session before, as `threads: 1 -> 2`.

    facts: as in meta/provenance.json.
    """
    before = last_session(layout)
    changed = [
        f"{key}: {before[key]} -> {facts[key]}"
        for key in CONDITIONS
        if key in before and before[key] != facts[key]
    ]

    row = {"step": step, **{key: facts[key] for key in (*RECORDED, *CONDITIONS)}}
    layout.sessions.parent.mkdir(parents=True, exist_ok=True)
    with layout.sessions.open("ab") as file:
        file.write(json.dumps(row).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    return changed


def last_session(layout: RunLayout) -> dict[str, Any]:
    """Conditions that the run trained under last; nothing for a run that has not begun.

    A run without sessions.jsonl was made before that file existed: its provenance says what it began with.
    """
    found = last_line(layout.sessions)
    if found:
        return found
    try:
        return read_json(layout.provenance)
    except BitnetError:
        return {}
