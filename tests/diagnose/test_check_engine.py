"""The packed engine against the model that it was packed from: a healthy one, one without kernels, and parts
that are wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from bitnet.diagnose.check_engine import engine, heads, in_order, matrices, multiplies, readings
from bitnet.diagnose.finding import Check
from bitnet.diagnose.subject import Subject
from bitnet.engine import weights
from bitnet.engine.from_torch import packed
from bitnet.kernels import library
from bitnet.nn.transformer import BitNetTransformer

pytest_plugins = ["kernel_paths"]  # fixtures: use
needs_kernels = pytest.mark.skipif(library.loaded().library is None, reason=library.describe())


def failed(checks: list[Check]) -> set[str]:
    return {check.name for check in checks if not check.ok}


@needs_kernels
def test_a_healthy_model_passes(tiny_model: BitNetTransformer) -> None:
    decoder = packed(tiny_model, head="f32")
    checks = [*matrices(tiny_model, decoder), *readings(tiny_model, decoder, "f32", ""), heads(tiny_model)]
    assert failed(checks) == set()
    assert len(checks) == 4
    assert len(in_order(decoder)) == len(tiny_model.bit_linears())


@needs_kernels
def test_a_wrong_scale_is_named_by_its_layer(tiny_model: BitNetTransformer) -> None:
    decoder = packed(tiny_model, head="f32")
    matrix = decoder.weights.layers[1].attn_out
    right = multiplies(matrix)
    matrix.scale[:] *= np.float32(1.01)
    assert np.allclose(multiplies(matrix), right * 1.01)
    (found,) = matrices(tiny_model, decoder)
    assert not found.ok
    assert found.detail.startswith("L1_attn_out: ")


@needs_kernels
def test_a_row_that_reads_on_from_the_wrong_place_is_named(tiny_model: BitNetTransformer) -> None:
    class Hasty(type(packed(tiny_model).new_rows(1))):  # type: ignore[misc]
        def take_back(self, row: int, length: int) -> None:
            super().take_back(row, max(length - 1, 0))

    decoder = packed(tiny_model, head="f32")
    decoder.new_rows = lambda count, capacity=None: Hasty(decoder, count, capacity)  # type: ignore[method-assign]
    same = next(check for check in readings(tiny_model, decoder, "f32", "") if "bits" in check.name)
    assert (same.ok, same.value) == (False, 1)
    assert same.detail.endswith(": after taking back")


@needs_kernels
def test_a_head_without_its_scales_is_seen(
    tiny_model: BitNetTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = weights.pack_dense  # type: ignore[attr-defined]

    def careless(weight: Any, form: Any, **other: Any) -> Any:
        matrix = real(weight, form, **other)
        return matrix._replace(scale=np.ones_like(matrix.scale))

    monkeypatch.setattr(weights, "pack_dense", careless)
    assert not heads(tiny_model).ok


def test_without_kernels_the_reason_is_given(
    tiny_model: BitNetTransformer, use: Callable[[Any, str], None]
) -> None:
    use(None, "torch")
    (only,) = engine(cast(Subject, SimpleNamespace(model=tiny_model)))
    assert only.ok
    assert "BITNET_KERNEL=torch" in only.value
