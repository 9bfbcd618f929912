"""One line for each process that trained a run, and what changed since the one before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bitnet.files import write_json
from bitnet.run.layout import RunLayout
from bitnet.run.metrics import read_lines
from bitnet.run.provenance import provenance
from bitnet.run.sessions import CONDITIONS, RECORDED, record_session


def facts(**changed: Any) -> dict[str, Any]:
    made = provenance(
        "one",
        1,
        device="cpu",
        product="int8",
        input_gradient="float",
        weight_gradient="fp32",
        gradient_dtype="float32",
        compiled=False,
        fused_loss=False,
        fused_blocks=False,
    )
    return {**made, **changed}


def test_the_first_session_changes_nothing_and_later_ones_name_what_did(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path)
    assert record_session(layout, 0, facts(threads=1)) == []
    assert record_session(layout, 40, facts(threads=1)) == []
    changed = record_session(layout, 80, facts(threads=2, compiled=True))
    assert changed == ["threads: 1 -> 2", "compiled: False -> True"]

    rows = read_lines(layout.sessions).rows
    assert [row["step"] for row in rows] == [0, 40, 80]
    assert all(row.keys() == {"step", *RECORDED, *CONDITIONS} for row in rows)


def test_a_run_without_sessions_is_compared_with_its_provenance(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path)
    layout.provenance.parent.mkdir(parents=True)
    write_json(layout.provenance, facts(device="cuda"))
    assert record_session(layout, 10, facts()) == ["device: cuda -> cpu"]
