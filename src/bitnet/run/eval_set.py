"""The frozen evaluation set: held-out batches written when a run begins, and checked by SHA-256 when read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from bitnet.errors import DataError
from bitnet.files import read_json, replacing, sha256
from bitnet.run.layout import RunLayout
from bitnet.run.tensors import check_fits_memory, read_tensors, write_tensors

if TYPE_CHECKING:
    from torch import Tensor

MOST_DIGITS = 10  # of a batch's number


def save_frozen_set(layout: RunLayout, batches: Sequence[Mapping[str, Tensor]]) -> str:
    """Write the batches (named tensors each) and return the file's SHA-256."""
    tensors = {
        f"{index}.{name}": tensor for index, batch in enumerate(batches) for name, tensor in batch.items()
    }
    with replacing(layout.frozen_set) as temporary:
        write_tensors(temporary, tensors)
    return sha256(layout.frozen_set)


def load_frozen_set(layout: RunLayout) -> list[dict[str, Tensor]]:
    """The batches as they were written. Raises DataError where the file is missing or was altered."""
    expected = read_json(layout.fingerprint).get("evaluation_sha256")
    if layout.frozen_set.is_file():
        check_fits_memory(layout.frozen_set)
    if not layout.frozen_set.is_file() or sha256(layout.frozen_set) != expected:
        raise DataError(
            f"{layout.frozen_set} is missing or was altered since the run began; restore it or begin under "
            "another --run-id"
        )

    batches: dict[int, dict[str, Tensor]] = {}
    for key, tensor in read_tensors(layout.frozen_set).items():
        index, dot, name = key.partition(".")
        if not (dot and index.isascii() and index.isdecimal() and len(index) < MOST_DIGITS):
            raise DataError(
                f"{layout.frozen_set} names a tensor {key[:40]!r}, which no evaluation set has; restore the "
                "file from a copy"
            )
        batches.setdefault(int(index), {})[name] = tensor
    return [batches[index] for index in sorted(batches)]
