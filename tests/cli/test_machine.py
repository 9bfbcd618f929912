"""`bitnet machine` tells what a bug report needs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from bitnet.kernels import library, rates
from conftest import Result


@pytest.fixture(autouse=True)
def _little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "MEMORY_BYTES", 1 << 20)
    monkeypatch.setattr(rates, "SHAPE", (64, 64))


def test_it_tells_versions_hardware_paths_and_rates(bitnet: Callable[..., Result]) -> None:
    found = bitnet("machine", "--json").json
    assert found["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    assert found["kernels"].startswith(library.path())
    assert set(found["kernel_paths"]) == set(library.loaded().paths)
    assert found["memory_gb_per_s"] > 0
    if library.path() != library.TORCH:
        assert found["engine"] == "packed"
        assert found["product_gops_512_rows"] > 0


def test_it_prints_a_line_for_each(bitnet: Callable[..., Result]) -> None:
    result = bitnet("machine")
    assert result.code == 0
    names = [line[:22].strip() for line in result.out.splitlines()]
    assert names[:3] == ["bitnet", "python", "torch"]
    assert {"cpu", "cpu features", "kernels", "memory gb per s"} <= set(names)


def test_without_compiled_kernels_it_says_why(
    bitnet: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(library.VARIABLE, "torch")
    found = bitnet("machine", "--json").json
    assert found["kernels"] == "torch, because BITNET_KERNEL=torch"
    assert (found["engine"], found["product_gops_1_row"]) == ("torch", None)
