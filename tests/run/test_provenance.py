"""Which code, machine and seeds made a run."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from bitnet.run.provenance import provenance, resident_gb


def made() -> dict[str, Any]:
    return provenance(
        "one",
        42,
        device="cpu",
        product="int8",
        input_gradient="float",
        weight_gradient="fp32",
        gradient_dtype="float32",
        compiled=False,
        fused_loss=False,
        fused_blocks=False,
    )


def test_it_names_the_commit_the_seeds_and_the_conditions() -> None:
    facts = made()
    command, here = ["git", "rev-parse", "HEAD"], Path(__file__).parent
    inside = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    assert facts["git_commit"] == (inside.stdout.strip() if inside.returncode == 0 else None)
    assert set(facts["seeds"].values()) == {42}
    assert facts["threads"] == torch.get_num_threads()
    assert facts["linear_product"] == "int8"
    assert json.loads(json.dumps(facts)) == facts


def test_without_git_the_commit_is_unknown_and_not_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert (made()["git_commit"], made()["git_dirty"]) == (None, None)


def test_the_memory_of_this_process_is_that_of_a_process_with_torch() -> None:
    held = resident_gb()
    assert held is None or 0.05 < held < 100
