"""What every model that writes text can do: rows of texts are read, continued, branched and taken back.

    rows = decoder.new_rows(2, capacity=64)
    logits = rows.read({0: [1, 2, 3], 1: [4]})      prefill: (2, V), after the last id of each text
    logits = rows.read({0: [7], 1: [9]})            a step
    rows.take_back(1, 0)                            row 1 ends, and is free for another text
    rows.branch(0, 1)                               row 1 goes on from where row 0 is

`BitNetTransformer` and the packed engine's `PackedDecoder` satisfy it, so that decoding, sessions and judges
run on either. Not here: which token comes next (sampling.py), and which texts are continued (decode.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from bitnet.nn.config import BitNetConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    Logits = Tensor | npt.NDArray[np.float32]
    """Of a decoder: a tensor on its device, or a NumPy array where no torch is needed."""


class Rows(Protocol):
    """Texts that are read and continued together, each with a length of its own."""

    lengths: npt.NDArray[np.int64]
    """Tokens that each row has read."""
    capacity: int
    """Tokens that each row has room for."""

    def read(self, texts: Mapping[int, Sequence[int]], *, every: bool = False) -> Any:
        """Append ids to rows. Returns `Logits` after the last id of each text (len(texts), V), in the order
        of `texts`; with `every`, after each id (all ids, V). Raises DataError where a row is full.
        """
        ...

    def take_back(self, row: int, length: int) -> None:
        """Forget what a row has read after its first `length` ids; 0 frees it for another text."""
        ...

    def branch(self, row: int, into: int) -> None:
        """Make row `into` go on from where `row` is, and forget its own text."""
        ...


class Decoder(Protocol):
    """A model that writes text."""

    @property
    def config(self) -> BitNetConfig:
        """Its shape."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it takes and returns tensors."""
        ...

    @property
    def mixes_lengths(self) -> bool:
        """Whether texts of different lengths are read in one pass, so that one may begin beside others."""
        ...

    def new_rows(self, count: int, capacity: int | None = None) -> Rows:
        """Room for `count` texts of up to `capacity` tokens (default: max_seq_length)."""
        ...

    def __call__(self, input_ids: Tensor, *, segments: Tensor | None = None) -> Any:
        """Logits after every token of texts that nothing came before. input_ids: int64 (B, T). Returns a
        tensor (B, T, V). segments: int64 (B, T); a token sees only tokens of its own number.
        """
        ...
