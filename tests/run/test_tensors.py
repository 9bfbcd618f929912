"""Tensors to a file and back; what is no such file, or too large for this machine, is one line."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from bitnet.errors import DataError
from bitnet.run import tensors
from bitnet.run.tensors import (
    ArrayFile,
    check_fits_memory,
    first_not_finite,
    first_not_finite_in,
    read_tensors,
    write_tensors,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int8])
def test_what_is_written_is_read(tmp_path: Path, dtype: torch.dtype) -> None:
    """Also a view whose memory is not its own, and one that asks for gradients."""
    whole = torch.arange(12).reshape(3, 4).to(dtype)
    write_tensors(tmp_path / "t", {"turned": whole.t(), "part": whole[1:, :2], "empty": whole[:0]})
    back = read_tensors(tmp_path / "t")
    assert back.keys() == {"turned", "part", "empty"}
    assert torch.equal(back["turned"], whole.t())
    assert torch.equal(back["part"], whole[1:, :2])
    assert back["empty"].shape == (0, 4)
    assert {tensor.dtype for tensor in back.values()} == {dtype}


def test_arrays_are_read_one_by_one_and_not_kept(tmp_path: Path) -> None:
    write_tensors(tmp_path / "t", {"a": torch.arange(6).view(2, 3), "b": torch.ones(2), "c": torch.zeros(0)})
    arrays = ArrayFile(tmp_path / "t")
    assert set(arrays) == {"a", "b", "c"}
    assert len(arrays) == 3
    assert arrays["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert arrays["a"] is not arrays["a"]
    assert arrays["c"].shape == (0,)
    assert "d" not in arrays
    assert arrays.get("d") is None
    (tmp_path / "t").unlink()
    with pytest.raises(DataError, match="is not a readable safetensors file"):
        arrays["b"]


def test_arrays_that_numpy_has_no_type_for_are_one_line(tmp_path: Path) -> None:
    write_tensors(tmp_path / "t", {"a": torch.ones(2, dtype=torch.bfloat16)})
    with pytest.raises(DataError, match="is not a readable safetensors file"):
        ArrayFile(tmp_path / "t")["a"]


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 64, (1 << 40).to_bytes(8, "little") + b"{}"])
def test_another_file_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t").write_bytes(content)
    with pytest.raises(DataError, match="is not a readable safetensors file") as raised:
        read_tensors(tmp_path / "t")
    assert "\n" not in str(raised.value)
    with pytest.raises(DataError, match="is not a readable safetensors file"):
        ArrayFile(tmp_path / "t")


def test_a_missing_folder_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file") as raised:
        write_tensors(tmp_path / "none" / "t", {"x": torch.zeros(1)})
    assert raised.value.errno == errno.ENOENT


def test_a_file_above_the_memory_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t").write_bytes(bytes(2000))
    monkeypatch.setattr(tensors, "machine_memory_bytes", lambda: 2000)
    check_fits_memory(tmp_path / "t")
    monkeypatch.setattr(tensors, "machine_memory_bytes", lambda: 1999)
    with pytest.raises(DataError, match="of memory"):
        check_fits_memory(tmp_path / "t")


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
