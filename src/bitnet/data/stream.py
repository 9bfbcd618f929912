"""Training data as an endless numbered sequence of rows.

Row i is a pure function of (seed, i). Which rows an update reads is a pure function of (step, rank, world
size), so the data position is never stored: resuming, or changing the number of processes while the rows per
update stay equal, gives the same stream. Update n reads rows (n-1)*R .. n*R-1, where

    R = batch_size * world_size * grad_accumulation_steps

and micro-batch m of rank k is the slice of batch_size rows that begins at (n-1)*R + (m * world_size + k) *
batch_size.

Data that led to values that are not finite is skipped (train/roll_back.py): then update n reads the rows that
belong to the later data step `data_step(n, skips)`. The skips are few, and recorded in the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitnet.files import sha256_of


class Batch(NamedTuple):
    """input_ids, targets: int64 (B, T), targets[t] is the token after input_ids[t]; loss_mask: bool (B, T).

    segments: int64 (B, T), or None where a row is one text. The model attends only between tokens of equal
    number. reference: float (B,), or None; summed log-probability of a row's scored targets under fixed
    weights, for a preference.
    """

    input_ids: Tensor
    targets: Tensor
    loss_mask: Tensor
    segments: Tensor | None = None
    reference: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that are present, by name."""
        return {name: tensor for name, tensor in self._asdict().items() if tensor is not None}

    def context(self) -> dict[str, Tensor]:
        """What a model gets beside the ids: `segments`, where there are any."""
        return {} if self.segments is None else {"segments": self.segments}

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        return Batch(
            **{name: tensor.to(device, non_blocking=True) for name, tensor in self.tensors().items()}
        )

    def equals(self, other: Batch) -> bool:
        """Whether both hold the same tensors, bit for bit."""
        mine, others = self.tensors(), other.tensors()
        return mine.keys() == others.keys() and all(torch.equal(mine[name], others[name]) for name in mine)

    def select(self, rows: Tensor | slice) -> Batch:
        """Some of its rows, in this order. rows: a slice, or int64 (n,)."""
        return Batch(**{name: tensor[rows] for name, tensor in self.tensors().items()})


class Skip(NamedTuple):
    """From update `step` on, the rows that so many `updates` would have read are left out."""

    step: int
    updates: int


def data_step(step: int, skips: Sequence[Skip]) -> int:
    """The update that would read the rows of update `step`, had nothing been skipped."""
    return step + sum(skip.updates for skip in skips if skip.step <= step)


class RowSource(Protocol):
    """An endless sequence of training rows."""

    def rows(self, numbers: NDArray[np.int64]) -> Batch:
        """The rows with these numbers, in this order."""
        ...

    def epochs(self, rows: int) -> float:
        """How many times a run of so many rows goes through the data."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """What the data is, for meta/dataset_fingerprint.json."""
        ...


def source_facts(
    name: str, tokens: int, first: NDArray[np.integer[Any]], revision: str | None = None
) -> dict[str, Any]:
    """The entries that every fingerprint begins with. tokens: in all; first: at least 1,000 ids, or all."""
    return {
        "dataset_name": name,
        "dataset_size_tokens": tokens,
        "hf_revision": revision,
        "first_1000_token_ids_sha256": ids_sha256(first[:1000]),
    }


def ids_sha256(ids: NDArray[np.integer[Any]]) -> str:
    """The SHA-256 of token ids as little-endian int64."""
    return sha256_of(ids.astype("<i8").tobytes())


def row_numbers(
    step: int, micro_batch: int, *, batch_size: int, accumulation: int, rank: int, world_size: int
) -> NDArray[np.int64]:
    """Rows of one micro-batch. step: 1..N; micro_batch: 0..accumulation-1; batch_size: rows per process."""
    per_update = batch_size * world_size * accumulation
    first = (step - 1) * per_update + (micro_batch * world_size + rank) * batch_size
    return np.arange(first, first + batch_size, dtype=np.int64)


def shifted(tokens: NDArray[np.int64], scored: NDArray[np.bool_]) -> Batch:
    """Next-token batch of windows. tokens, scored: (B, T + 1); scored says which tokens count as targets."""
    ids = torch.from_numpy(np.ascontiguousarray(tokens))
    mask = torch.from_numpy(np.ascontiguousarray(scored))
    return Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), mask[:, 1:].contiguous())


def concatenate(batches: Sequence[Batch]) -> Batch:
    """Rows of several batches of equal width as one. All of them have segments, or none has."""
    return Batch(
        **{name: torch.cat([batch.tensors()[name] for batch in batches]) for name in batches[0].tensors()}
    )
