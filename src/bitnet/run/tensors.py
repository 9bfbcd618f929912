"""Tensors to a safetensors file, with the errors of the disk as the system names them.

Not here: reading, which load_checkpoint and load_frozen_set do after they have checked the file's SHA-256.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bitnet.files import sync

if TYPE_CHECKING:
    from torch import Tensor


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a file and wait until it is on disk. Raises OSError; the library's own error is no OSError, not even on a full disk."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        code = int(number.group(1)) if number else 0
        raise OSError(code, os.strerror(code) if code else str(error), str(path)) from error
    sync(path)
