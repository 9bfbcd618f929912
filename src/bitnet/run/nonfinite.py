"""Tensors with NaN or infinite values, looked for before a checkpoint is written and when one is read.

Such a checkpoint can be whole by every size and hash, and still nothing that was trained is left in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bitnet.run.tensors import reading

if TYPE_CHECKING:
    from torch import Tensor


def first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor that holds a NaN or an infinity, or None. Integers are always finite."""
    import torch

    return next((name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())), None)


def first_not_finite_in(path: Path) -> str | None:
    """The same of a safetensors file, read one tensor at a time. Raises DataError for a malformed one."""
    from safetensors import safe_open

    with reading(path), safe_open(path, framework="pt") as file:
        return next((name for name in file.keys() if first_not_finite({name: file.get_tensor(name)})), None)  # noqa: SIM118 - no dict
