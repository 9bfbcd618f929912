"""Texts that are read side by side and share their beginnings, with PyTorch or with the packed engine.

Both answer with the likeliest token. PyTorch's cache has one length for all rows; the packed engine reads any
of its rows and leaves the others alone. Not here: which texts are read (explorer.py).
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

from bitnet.engine.decoder import PackedDecoder, PackedRows
from bitnet.experiments.tictactoe.game_tree import IntArray
from bitnet.nn.kv_cache import KVCache
from bitnet.nn.transformer import BitNetTransformer
from bitnet.text.tokenizer import PAD

MAX_ROWS = 512  # texts read together; bounds the memory of the caches
IN_PLACE = 0.8  # share of a cache's rows that must go on for it to be worth reading padding in the others


class SharedTexts(Protocol):
    """Texts of one length in the rows of a cache. length: set to fewer to take tokens back; few: below so
    many lines all their children are read at once; walker: (number, of how many) walks the tree.
    """

    length: int
    few: int
    walker: tuple[int, int]

    def read(
        self, tokens: IntArray, rows: IntArray, *, every: bool = False
    ) -> tuple[IntArray, SharedTexts, IntArray]:
        """The likeliest token after the last of each row's tokens (n,), or after `every` one (n, k); the
        texts that now hold them, and their rows in it. tokens: (n, k), filled up with PAD; rows: (n,).
        """


class TorchTexts:
    """Where most rows go on, they do so in place, and the caller takes the cache back to its length; the few
    that do not read padding, which is overwritten. Else the rows that go on are copied: copying is what this
    walk spends its time on.
    """

    few, walker = MAX_ROWS // 2, (0, 1)

    def __init__(self, model: BitNetTransformer, cache: KVCache) -> None:
        self.model, self.cache = model, cache

    @property
    def length(self) -> int:
        """Tokens read."""
        return self.cache.length

    @length.setter
    def length(self, tokens: int) -> None:
        self.cache.length = tokens

    def read(
        self, tokens: IntArray, rows: IntArray, *, every: bool = False
    ) -> tuple[IntArray, SharedTexts, IntArray]:
        """As SharedTexts.read."""
        texts: TorchTexts = self
        if len(rows) < IN_PLACE * self.cache.rows or len(np.unique(rows)) < len(rows):
            room = self.cache.capacity - self.cache.length
            chosen = torch.from_numpy(rows).to(self.model.device)
            texts, rows = TorchTexts(self.model, self.cache.branch(chosen, room)), np.arange(len(rows))

        whole = np.full((texts.cache.rows, tokens.shape[1]), PAD, np.int64)
        whole[rows] = tokens
        hidden = self.model.hidden(torch.from_numpy(whole).to(self.model.device), texts.cache)[rows]
        said: IntArray = self.model.lm_head(hidden if every else hidden[:, -1]).argmax(-1).cpu().numpy()
        return said, texts, rows


class PackedTexts:
    """Rows go on in place; where several begin with the same row, it is copied."""

    few = MAX_ROWS // 8

    def __init__(self, rows: PackedRows, length: int, walker: tuple[int, int]) -> None:
        self.rows, self.length, self.walker = rows, length, walker

    @classmethod
    def of(cls, decoder: PackedDecoder, capacity: int, walker: tuple[int, int]) -> PackedTexts:
        """Empty, with the weights of this decoder and a thread of its own."""
        own = PackedDecoder(decoder.config, decoder.weights, threads=1)
        return cls(own.new_rows(1, capacity), 0, walker)

    def read(
        self, tokens: IntArray, rows: IntArray, *, every: bool = False
    ) -> tuple[IntArray, SharedTexts, IntArray]:
        """As SharedTexts.read."""
        texts: PackedTexts = self
        if len(np.unique(rows)) < len(rows):
            texts, rows = self._branch(rows), np.arange(len(rows))

        real = tokens != PAD
        counts = real.sum(axis=1)
        position = self.length + np.nonzero(real)[1]
        want = np.arange(counts.sum()) if every else counts.cumsum() - 1
        logits = texts.rows.decoder.forward(texts.rows, tokens[real], np.repeat(rows, counts), position, want)
        said = np.zeros(tokens.shape if every else len(rows), np.int64)
        said[real if every else slice(None)] = logits.argmax(axis=1)
        texts.length = self.length + tokens.shape[1]
        return said, texts, rows

    def _branch(self, rows: IntArray) -> PackedTexts:
        new = self.rows.decoder.new_rows(len(rows), self.rows.capacity)
        self.rows.lengths[:] = self.length
        for into, row in enumerate(rows.tolist()):
            self.rows.branch(row, into, new)
        return PackedTexts(new, self.length, self.walker)
