"""The first tensor that holds a NaN or an infinity, in memory and in a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bitnet.run.nonfinite import first_not_finite, first_not_finite_in
from bitnet.run.tensors import write_tensors


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_tensor_is_named(tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    broken = torch.zeros(5, 5, dtype=dtype)
    broken[4, 4] = value
    tensors = {"codes": torch.ones(3, dtype=torch.int8), "fine": torch.ones(3), "out": broken}
    assert first_not_finite(tensors) == "out"
    write_tensors(tmp_path / "t", tensors)
    assert first_not_finite_in(tmp_path / "t") == "out"


def test_finite_ones_have_no_name(tmp_path: Path) -> None:
    tensors = {"codes": torch.ones(3, dtype=torch.int8), "largest": torch.full((2,), 3e38)}
    assert first_not_finite(tensors) is None
    write_tensors(tmp_path / "t", tensors)
    assert first_not_finite_in(tmp_path / "t") is None
