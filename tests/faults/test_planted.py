"""A dozen planted faults, and a healthy model: the examination names the part. benchmarks/faults.py tries
all of them.

The rehearsal of the trainer is left out here, to be fast; benchmarks/faults.py and tests/cli/test_diagnose.py
have it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from planted import FAULTS, Fault, examined

CHOSEN = (
    "activations unquantized",
    "no causal mask",
    "no straight-through",
    "accumulation not divided",
    "targets are the present tokens",
    "rate ten times too high",
    "evaluation on training data",
    "top-p keeps the tail",
    "a packed cache off by one after taking back",
    "int8 steps in the input's format, unclamped",
    "unlikelihood of the target too",
    "the stream begins again after 150 updates",
)


def test_there_are_a_hundred_and_each_has_a_name() -> None:
    assert len(FAULTS) >= 100
    assert len({one.name for one in FAULTS}) == len(FAULTS)


@pytest.fixture(scope="module", autouse=True)
def _no_rehearsal() -> Any:
    import torch._dynamo  # noqa: F401 - torch's optimizers import it on first use, in every forked process again

    from bitnet.diagnose import run_checks

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_checks, "_rehearse", lambda subject: ())
        yield


@pytest.mark.slow
@pytest.mark.parametrize("name", CHOSEN)
def test_the_broken_part_is_named(name: str, tmp_path: Path) -> None:
    one = next(one for one in FAULTS if one.name == name)
    result = examined(one, tmp_path)
    assert "error" not in result, result["error"]
    assert result["suspect"] in one.suspects, result["evidence"]
    assert any(one.check in evidence for evidence in result["evidence"])
    assert result["code"] == 1


@pytest.mark.slow
def test_a_healthy_model_is_left_alone(tmp_path: Path) -> None:
    result = examined(Fault("nothing", ("none",), ""), tmp_path)
    assert result["suspect"] == "none", result["evidence"]
    assert result["code"] == 0
