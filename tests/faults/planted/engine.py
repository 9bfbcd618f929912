"""Faults of the packed engine. The model in PyTorch stays right."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np

from bitnet.engine import decoder, weights
from bitnet.engine.decoder import PackedRows
from planted.fault import fault


@fault("a wrong scale of one packed matrix", "engine", "packed matrices")
def _() -> None:
    original, calls = weights.pack_ternary, itertools.count()

    def pack(codes: Any, row_scale: Any, threads: int = 1) -> Any:
        wrong = 1.02 if next(calls) % 8 == 5 else 1.0
        return original(codes, row_scale * np.float32(wrong), threads)

    weights.pack_ternary = pack  # type: ignore[attr-defined]


@fault("a packed cache off by one after taking back", "engine", "same bits")
def _() -> None:
    original = PackedRows.take_back

    def take_back(self: Any, row: int, length: int) -> None:
        original(self, row, min(length + 1, int(self.lengths[row])) if length else 0)

    PackedRows.take_back = take_back  # type: ignore[method-assign]


@fault("a packed head without its scales", "engine", "format of the head")
def _() -> None:
    original = weights.pack_dense

    def pack(weight: Any, form: Any, **other: Any) -> Any:
        matrix = original(weight, form, **other)
        return matrix._replace(scale=np.ones_like(matrix.scale)) if form == "int8" else matrix

    weights.pack_dense = pack  # type: ignore[attr-defined]


@fault("a packed branch with the values of its own row", "engine", "same bits")
def _() -> None:
    original = PackedRows.branch

    def branch(self: Any, row: int, into: int, target: Any = None) -> None:
        there = target or self
        values = there._heads(into)[:, there._values_at(0) :]
        own = values.copy()
        original(self, row, into, target)
        values[:] = own

    PackedRows.branch = branch  # type: ignore[method-assign]


@fault("the engine's rotary with another base", "engine", "engine's logits")
def _() -> None:
    original = decoder.rotary_halves
    decoder.rotary_halves = lambda config: original(
        dataclasses.replace(config, rope_theta=config.rope_theta / 10)
    )
