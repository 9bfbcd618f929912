"""A BitNetTransformer in packed form, and the same as a drop-in wherever text is written or judged.

`PackedTransformer` takes and returns torch tensors like the model that it was made from, so that decoding,
judges and losses run on either. It cannot be trained. Codes and scales are the model's own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bitnet.engine.decoder import PackedDecoder, PackedRows
from bitnet.engine.matrix import DenseFormat
from bitnet.engine.weights import pack_weights
from bitnet.errors import ConfigError
from bitnet.kernels.arrays import Array
from bitnet.nn.kv_cache import KVCache
from bitnet.nn.quantize import ternarize
from bitnet.nn.transformer import BitNetTransformer


def packed(
    model: BitNetTransformer,
    *,
    head: DenseFormat = "int8",
    full: DenseFormat | None = None,
    threads: int | None = None,
) -> PackedDecoder:
    """Pack a model as it is now; later changes of its weights do not reach the decoder."""
    arrays = {name: weight.detach().float().cpu().numpy() for name, weight in model.named_parameters()}
    count = threads or torch.get_num_threads()
    weights = pack_weights(model.config, arrays, head=head, full=full, quantizer=_ternarize, threads=count)
    return PackedDecoder(model.config, weights, threads=count)


def _ternarize(name: str, weight: Array, rows: tuple[int, ...]) -> tuple[Array, Array]:
    ternary = ternarize(torch.from_numpy(weight), rows)
    return ternary.codes.numpy(), ternary.row_scale.flatten().numpy()


class PackedCache(KVCache):
    """What a packed model has read: rows of one length, as in KVCache."""

    def __init__(self, texts: PackedRows) -> None:
        self.texts, self.capacity = texts, texts.capacity

    @property
    def rows(self) -> int:
        """Sequences that it holds."""
        return len(self.texts.lengths)

    @property
    def length(self) -> int:
        """Tokens read; set to fewer to take the others back."""
        return int(self.texts.lengths[0])

    @length.setter
    def length(self, tokens: int) -> None:
        for row in range(self.rows):
            self.texts.take_back(row, tokens)

    def branch(self, rows: Tensor, room: int) -> PackedCache:
        """As KVCache.branch. rows: int64 (n,)."""
        new = self.texts.decoder.new_rows(len(rows), self.length + room)
        for into, row in enumerate(rows.tolist()):
            self.texts.branch(row, into, new)
        return PackedCache(new)


class PackedTransformer(BitNetTransformer):
    """A model that computes with the packed engine: token ids (B, T) to logits (B, T, V), no gradients."""

    def __init__(self, decoder: PackedDecoder) -> None:
        nn.Module.__init__(self)
        self.config, self.decoder = decoder.config, decoder

    @property
    def device(self) -> torch.device:
        """Where it takes and returns tensors."""
        return torch.device("cpu")

    def new_cache(self, rows: int, capacity: int | None = None) -> PackedCache:
        """As BitNetTransformer.new_cache."""
        return PackedCache(self.decoder.new_rows(rows, capacity))

    def next_logits(self, input_ids: Tensor, cache: KVCache) -> Tensor:
        """As BitNetTransformer.next_logits; the head is computed for the last position only."""
        assert isinstance(cache, PackedCache)
        return torch.from_numpy(cache.texts.read(dict(enumerate(input_ids.tolist()))))

    def forward(
        self,
        input_ids: Tensor,
        cache: KVCache | None = None,
        segments: Tensor | None = None,
        *,
        head: bool = True,
    ) -> Tensor:
        """Logits after every token. input_ids: int64 (B, T). Returns (B, T, V)."""
        assert head, "hidden states are for training, which the engine does not do"
        rows, tokens = input_ids.shape
        if tokens > self.config.max_seq_length:
            raise ConfigError(
                f"{tokens} tokens do not fit the model's max_seq_length of {self.config.max_seq_length}; "
                "give it a shorter text"
            )
        if cache is not None:
            assert isinstance(cache, PackedCache)
            logits = cache.texts.read(dict(enumerate(input_ids.tolist())), every=True)
        else:
            texts = _texts(input_ids.numpy(), None if segments is None else segments.numpy())
            logits = self._read_alone(texts)
        return torch.from_numpy(logits).view(rows, tokens, -1)

    def _read_alone(self, texts: list[list[int]]) -> Array:
        """Logits after every token of texts that nothing came before. Returns (all tokens, V)."""
        longest = max(map(len, texts))
        reader = self.decoder.new_rows(1, longest)
        found = []
        for text in texts:
            reader.take_back(0, 0)
            found.append(reader.read({0: text}, every=True))
        return np.concatenate(found)


def _texts(ids: Array, segments: Array | None) -> list[list[int]]:
    """The rows, cut where a segment begins: a token attends only to tokens of its own segment, and rotary
    positions tell it no more than their distances.
    """
    texts: list[list[int]] = []
    for index, row in enumerate(ids):
        cuts: Any = [] if segments is None else np.flatnonzero(np.diff(segments[index])) + 1
        texts += [part.tolist() for part in np.split(row, cuts)]
    return texts
