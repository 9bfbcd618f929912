"""Tensors to a safetensors file and back, with errors that name the file.

Writing gives the errors of the disk as the system names them. Reading takes a file from anyone: the library
checks that the shapes in the header agree with the bytes behind it before anything is allocated, and what it
refuses is one DataError.
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
    from torch import Tensor


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
    except (SafetensorError, OSError, ValueError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{path} is not a readable safetensors file ({reason}); restore it from a copy"
        ) from None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, by name. Raises DataError for a malformed one."""
    from safetensors.torch import load_file

    with reading(path):
        return load_file(path)
