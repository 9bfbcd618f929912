"""Texts that a BitNetTransformer reads and continues together: `bitnet.generate.decoder.Rows` over its cache.

The model computes rows of one length at a time, so texts of different lengths take one pass for each length.
Not here: the packed engine's rows, which mix lengths (engine/decoder.py).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bitnet.nn.row_lengths import RowLengths

if TYPE_CHECKING:
    from bitnet.nn.transformer import BitNetTransformer

IN_PLACE = 0.5  # share of a span of rows that must be read for it not to be copied


class CachedRows(RowLengths):
    """Rows of one KVCache, each with a length of its own."""

    def __init__(self, model: BitNetTransformer, count: int, capacity: int | None) -> None:
        self.model, self._cache = model, model.new_cache(count, capacity)
        super().__init__(count, self._cache.capacity)

    @torch.no_grad()
    def read(self, texts: Mapping[int, Sequence[int]], *, every: bool = False) -> Tensor:
        """As Rows.read, on the model's device."""
        self.room_for(texts)
        alike: dict[tuple[int, int], list[int]] = defaultdict(list)
        for row, text in texts.items():
            alike[int(self.lengths[row]), len(text)].append(row)

        found: dict[int, Tensor] = {}
        for (start, count), rows in alike.items():
            ids = torch.tensor([list(texts[row]) for row in rows], device=self.model.device)
            hidden = self._read_alike(rows, ids, start)  # (rows, count, C)
            logits: Tensor = self.model.lm_head(hidden if every else hidden[:, -1:])
            self.lengths[rows] += count
            if len(alike) == 1:  # in the order of texts as they are
                return logits.flatten(0, 1)
            found |= zip(rows, logits, strict=True)
        return torch.cat([found[row] for row in texts])

    def _read_alike(self, rows: list[int], ids: Tensor, start: int) -> Tensor:
        """Hidden states of ids (n, k) that `rows` read after their first `start` ids. Returns (n, k, C)."""
        first, last = min(rows), max(rows) + 1
        free = self.lengths[first:last] <= start  # whatever is written after `start` is nothing of theirs
        if len(rows) >= IN_PLACE * (last - first) and free.all():
            whole = torch.zeros(last - first, ids.shape[1], dtype=torch.int64, device=ids.device)
            places = torch.tensor(rows, device=ids.device) - first
            whole[places] = ids
            return self.model.hidden(whole, self._cache.part(slice(first, last), start))[places]

        # A few rows among longer ones: their part is copied, and what is new is copied back.
        index = torch.tensor(rows, device=ids.device)
        part = self._cache.part(index, start)
        hidden = self.model.hidden(ids, part)
        new = slice(start, start + ids.shape[1])
        self._cache.keys[:, index, :, new] = part.keys[..., new, :]
        self._cache.values[:, index, :, new] = part.values[..., new, :]
        return hidden

    def branch(self, row: int, into: int) -> None:
        """As Rows.branch."""
        self.lengths[into] = length = self.lengths[row]
        for tensor in (self._cache.keys, self._cache.values):
            tensor[:, into, :, :length] = tensor[:, row, :, :length]
