"""Keys and values of the tokens already read, so that each new token costs one position of work."""

from __future__ import annotations

from copy import copy

import torch
from torch import Tensor


class KVCache:
    """Room for `capacity` tokens in every layer. All rows of a batch have the same length."""

    def __init__(
        self, layers: int, rows: int, heads: int, capacity: int, head_dim: int, *, like: Tensor
    ) -> None:
        """heads counts key/value heads (G); like gives device and dtype."""
        shape = (layers, rows, heads, capacity, head_dim)
        self.keys = torch.empty(shape, device=like.device, dtype=like.dtype)
        self.values = torch.empty_like(self.keys)
        self.capacity = capacity
        self.length = 0

    @property
    def rows(self) -> int:
        """Sequences that it holds."""
        return self.keys.shape[1]

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append this layer's new keys and values, (B, G, T, D); return all so far, (B, G, length + T, D)."""
        end = self.length + keys.shape[2]
        assert end <= self.capacity, f"cache of {self.capacity} tokens cannot hold {end}"
        self.keys[layer, :, :, self.length : end] = keys
        self.values[layer, :, :, self.length : end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def advance(self, tokens: int) -> None:
        """Count `tokens` as read, after the last layer has stored them."""
        self.length += tokens

    def select(self, rows: Tensor) -> None:
        """Keep only these rows of the batch (int64 indices or a boolean mask)."""
        self.keys = self.keys[:, rows]
        self.values = self.values[:, rows]

    def part(self, rows: slice | Tensor, length: int) -> KVCache:
        """These rows as if they had read `length` tokens: a slice in place, int64 (n,) as a copy."""
        part = copy(self)
        part.keys, part.values, part.length = self.keys[:, rows], self.values[:, rows], length
        return part

    def branch(self, rows: Tensor, room: int) -> KVCache:
        """A new cache that holds these rows of this one and has room for more tokens. rows: int64 (n,)."""
        layers, _, heads, _, width = self.keys.shape
        new = KVCache(layers, len(rows), heads, self.length + room, width, like=self.keys)
        new.keys[:, :, :, : self.length] = self.keys[:, rows, :, : self.length]
        new.values[:, :, :, : self.length] = self.values[:, rows, :, : self.length]
        new.length = self.length
        return new
