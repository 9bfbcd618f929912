"""Nothing of a wrong size, type or layout reaches the training passes in C."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from bitnet.kernels import pass_calls

pytest_plugins = ["kernel_paths"]  # fixtures: path, use, empty_cache

F32 = torch.float32
ROWS, HALF, SIDE, LINE = torch.ones(3, 8), torch.ones(3, 4), torch.ones(3), torch.ones(8)
HEADS = torch.ones(1, 2, 3, 4)

WRONG: dict[str, Callable[[], Any]] = {
    "a gradient of doubles": lambda: pass_calls.quantize_gradient(
        ROWS.double(), None, "silu", None, None, F32
    ),
    "a strided gradient": lambda: pass_calls.quantize_gradient(ROWS[:, ::2], None, "silu", None, None, F32),
    "a gradient without columns": lambda: pass_calls.quantize_gradient(
        ROWS[:, :0], None, "silu", None, None, F32
    ),
    "a gradient in float16": lambda: pass_calls.quantize_gradient(
        ROWS, None, "silu", None, None, torch.float16
    ),
    "row scales too few": lambda: pass_calls.quantize_gradient(ROWS, None, "silu", LINE[:7], None, F32),
    "steps too few": lambda: pass_calls.quantize_gradient(ROWS, None, "silu", None, SIDE[:2], F32),
    "steps of double": lambda: pass_calls.quantize_gradient(ROWS, None, "silu", None, SIDE.double(), F32),
    "a gradient as wide as gate and up": lambda: pass_calls.gate_gradient(ROWS, ROWS, "silu"),
    "a gate of odd width": lambda: pass_calls.gate(ROWS[:, :7].contiguous(), "silu"),
    "a norm of another width": lambda: pass_calls.quantize_gated(ROWS, "silu", LINE, 1e-5),
    "a norm's gradient of another shape": lambda: pass_calls.norm_gradient(HALF, ROWS, SIDE, LINE),
    "a norm without its inverse": lambda: pass_calls.norm_gradient(ROWS, ROWS, SIDE[:1], LINE),
    "a norm without its weight": lambda: pass_calls.norm_gradient(ROWS, ROWS, SIDE, LINE[:4]),
    "rows that are not whole heads": lambda: pass_calls.rotary(ROWS[None], ROWS, ROWS, 2, 1, F32),
    "heads of odd width": lambda: pass_calls.rotary(
        torch.ones(1, 3, 12), HALF[:, :3], HALF[:, :3], 2, 1, F32
    ),
    "angles of too few positions": lambda: pass_calls.rotary(
        torch.ones(1, 3, 16), HALF[:2], HALF[:2], 2, 1, F32
    ),
    "heads of different formats": lambda: pass_calls.rotary_gradient(
        HEADS, HEADS.bfloat16(), HEADS, HALF, HALF, F32
    ),
    "heads of different texts": lambda: pass_calls.rotary_gradient(
        HEADS, HEADS, HEADS.repeat(2, 1, 1, 1), HALF, HALF, F32
    ),
    "strided heads": lambda: pass_calls.rotary_gradient(HEADS, HEADS, HEADS.transpose(1, 3), HALF, HALF, F32),
    "targets of 32 bits": lambda: pass_calls.cross_entropy(ROWS, torch.zeros(3, dtype=torch.int32), SIDE),
    "too few targets": lambda: pass_calls.cross_entropy(ROWS, torch.zeros(2, dtype=torch.int64), SIDE),
    "too few weights": lambda: pass_calls.cross_entropy(ROWS, torch.zeros(3, dtype=torch.int64), SIDE[:2]),
    "matrices of too few rows": lambda: pass_calls.pack_weight(ROWS, [1, 1], None),
    "a matrix of no rows": lambda: pass_calls.pack_weight(ROWS, [3, 0], None),
    "a matrix of negative rows": lambda: pass_calls.pack_weight(ROWS, [4, -1], None),
    "too few scales": lambda: pass_calls.pack_weight(ROWS, [3], SIDE[:2]),
    "a weight in bfloat16": lambda: pass_calls.pack_weight(ROWS.bfloat16(), [3], None),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_never_reach_c(
    name: str, use: Callable[[Any, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    use(None, "scalar")
    monkeypatch.setattr(pass_calls, "kernels", lambda: pytest.fail("C would have been called"))
    with pytest.raises(ValueError, match=r"shape|dtype|rows|contiguous|heads|halves"):
        WRONG[name]()


def test_no_rows_are_no_work(path: str) -> None:
    codes, step, scaled = pass_calls.quantize_gradient(ROWS[:0], None, "silu", LINE, SIDE[:0], F32)
    assert codes.shape == scaled.shape == (0, 8)
    assert step.shape == (0,)
    grad_x, grad_weight = pass_calls.norm_gradient(ROWS[:0], ROWS[:0], SIDE[:0], LINE)
    assert grad_x.shape == (0, 8)
    assert (grad_weight == 0).all()
