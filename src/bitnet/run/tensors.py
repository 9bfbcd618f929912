"""Tensors to a safetensors file and back, with errors that name the file.

Writing gives the errors of the disk as the system names them. Reading takes a file from anyone: the library
checks that the shapes in the header agree with the bytes behind it before anything is allocated, and what it
refuses is one DataError.

A tensor with a NaN or an infinity can be whole by every size and hash, and still nothing that was trained is
left in it: `first_not_finite` finds it before a checkpoint is written and when one is read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bitnet.allocator import machine_memory_bytes
from bitnet.errors import DataError
from bitnet.files import sync
from bitnet.units import byte_size

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    Array = npt.NDArray[np.generic]


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a file and wait until it is on disk. Raises OSError."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:
        # The library has an error of its own, even for a full disk, with the system's number in its text.
        number = re.search(r"os error (\d+)", str(error))
        code = int(number.group(1)) if number else 0
        raise OSError(code, os.strerror(code) if code else str(error), str(path)) from error
    sync(path)


def check_fits_memory(path: Path) -> None:
    """Raise DataError for a file larger than this machine's memory, before it is hashed or read."""
    size, there = path.stat().st_size, machine_memory_bytes()
    if size > there:
        raise DataError(
            f"{path} has {byte_size(size)}, and the machine has {byte_size(there)} of memory; use a "
            "smaller one"
        )


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what the library says of a malformed or unreadable file into one DataError."""
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{path} is not a readable safetensors file ({reason}); restore it from a copy"
        ) from None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, by name. Raises DataError for a malformed one."""
    from safetensors.torch import load_file

    with reading(path):
        return load_file(path)


class ArrayFile(Mapping[str, "Array"]):
    """The tensors of a safetensors file as NumPy arrays, without torch. Each is read when it is asked for and
    not kept, and the file is closed in between, so that no more than one is in memory. Raises DataError for a
    malformed file, and for bfloat16, which NumPy lacks.
    """

    def __init__(self, path: Path) -> None:
        from safetensors import safe_open

        self._path = path
        with reading(path), safe_open(path, framework="np") as file:
            self._names = frozenset(file.keys())

    def __getitem__(self, name: str) -> Array:
        from safetensors import safe_open

        if name not in self._names:
            raise KeyError(name)
        with reading(self._path), safe_open(self._path, framework="np") as file:
            array: Array = file.get_tensor(name)
        return array

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor that holds a NaN or an infinity, or None. Integers are always finite."""
    import torch

    return next((name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())), None)


def first_not_finite_in(path: Path) -> str | None:
    """The same of a safetensors file, read one tensor at a time. Raises DataError for a malformed one."""
    from safetensors import safe_open

    with reading(path), safe_open(path, framework="pt") as file:
        return next((name for name in file.keys() if first_not_finite({name: file.get_tensor(name)})), None)  # noqa: SIM118 - no dict
