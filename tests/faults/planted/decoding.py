"""Faults of the cache and of the choice of the next token."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from bitnet.generate import decode, sampling
from bitnet.generate.sampling import Sampling
from bitnet.nn.kv_cache import KVCache
from bitnet.nn.transformer import BitNetTransformer
from planted.fault import fault


@fault("cache at the wrong position", "decoding", "cached")
def _() -> None:
    original = BitNetTransformer.hidden

    def hidden(self: Any, ids: Any, cache: Any = None, segments: Any = None) -> Any:
        kept = self.cos, self.sin
        if cache is not None and cache.length:
            self.cos, self.sin = (torch.roll(table, 1, 0) for table in kept)
        try:
            return original(self, ids, cache, segments)
        finally:
            self.cos, self.sin = kept

    BitNetTransformer.hidden = hidden  # type: ignore[method-assign]


def _probabilities(change: Callable[[Any, Any, Any], Any]) -> None:
    original = sampling.probabilities
    sampling.probabilities = lambda logits, how: change(logits, how, original)


@fault("top-p keeps the tail", "decoding", "top-p")
def _() -> None:
    def tail(logits: Any, how: Any, of: Any) -> Any:
        kept = of(logits, how)
        if how.top_p is None:
            return kept
        rest = of(logits, dataclasses.replace(how, top_p=None)).masked_fill(kept > 0, 1e-9)
        return rest / rest.sum(-1, keepdim=True)

    _probabilities(tail)


@fault("temperature inverted", "decoding", "temperature")
def _() -> None:
    _probabilities(
        lambda logits, how, of: of(
            logits, dataclasses.replace(how, temperature=1 / how.temperature) if how.temperature else how
        )
    )


@fault("seed ignored", "decoding", "seeds")
def _() -> None:
    Sampling.generator = lambda self, device: torch.Generator(device).manual_seed(0)  # type: ignore[method-assign]


@fault("end of text never stops", "decoding", "stop token")
def _() -> None:
    original = decode.generate
    decode.generate = lambda *words, stop_ids=(), **rest: original(*words, stop_ids=(), **rest)


@fault("greedy takes the second best", "decoding", "most likely")
def _() -> None:
    decode.choose = lambda logits, how, generator: logits.topk(2).indices[:, 1]


@fault("cache forgets beyond 40 tokens", "decoding", "last position")
def _() -> None:
    original = KVCache.extend

    def extend(self: Any, layer: int, keys: Any, values: Any) -> Any:
        if self.length > 40:
            values = values * 0.5
        return original(self, layer, keys, values)

    KVCache.extend = extend  # type: ignore[method-assign]


@fault("a branched cache of other rows", "decoding", "cached")
def _() -> None:
    original = KVCache.branch
    KVCache.branch = lambda self, rows, room: original(self, rows.flip(0), room)  # type: ignore[method-assign]
