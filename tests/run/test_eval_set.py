"""The frozen evaluation set is written once, fingerprinted, and refused when it was altered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bitnet.errors import DataError
from bitnet.run.eval_set import load_frozen_set
from bitnet.run.layout import RunLayout
from conftest import TINY_TRAIN, Command

SAME = [*TINY_TRAIN, "--num-steps", 8, "--train.checkpoint-every", 3, "--run-id", "tiny"]


def test_set_is_the_fingerprinted_one_and_holds_no_training_problem(runs: Path) -> None:
    layout = RunLayout(runs / "tiny")
    batches = load_frozen_set(layout)
    fingerprint = json.loads(layout.fingerprint.read_text())
    assert sum(len(batch["input_ids"]) for batch in batches) == fingerprint["evaluation_sequences"] == 8
    assert len(fingerprint["evaluation_sha256"]) == 64


def test_altered_set_stops_a_resume_and_nothing_is_trained(bitnet: Command, runs: Path) -> None:
    layout = RunLayout(runs / "tiny")
    data = bytearray(layout.frozen_set.read_bytes())
    data[-1] ^= 1
    layout.frozen_set.write_bytes(bytes(data))
    with pytest.raises(DataError, match="was altered"):
        load_frozen_set(layout)
    status = json.loads(layout.status.read_text())
    layout.status.write_text(json.dumps({**status, "state": "stopped"}))
    before = layout.scalars.read_bytes()
    result = bitnet(*SAME, "--runs-dir", runs)
    assert result.code == 2
    assert "was altered" in result.err
    assert layout.scalars.read_bytes() == before


def test_status_needs_no_torch(runs: Path) -> None:
    import subprocess
    import sys

    check = "import sys; from bitnet.cli.main import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", check, "status", str(runs / "tiny")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip().endswith("False")
