"""Batches of a task that a rule can generate: prompts with one right answer.

An `ExampleTable` holds examples as token ids. A `TableRows` draws from it with a counter-based hash, so that
slot k of row i is a pure function of (seed, i, k), and lays the examples in rows in one of two ways:

    single   one example a row, padded to the longest; nothing is wasted on attention between examples
    packed   examples one after another until the row is full, cut at its end

`held_out` decides by a stable hash of an example's key whether it may be trained on.
Not here: the rules themselves; each stands in its experiment's file.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bitnet.data.stream import Batch, ids_sha256, shifted, source_facts
from bitnet.errors import ConfigError
from bitnet.files import stable_number
from bitnet.text.tokenizer import PAD, Tokenizer

Layout = Literal["single", "packed"]
LossOn = Literal["answers", "all"]


class Example(NamedTuple):
    """prompt: what is given; answer: the only right continuation, its end mark included."""

    prompt: str
    answer: str


def held_out(key: str, one_in: int = 10) -> bool:
    """Whether the thing named by `key` is kept for evaluation. Stable across machines and versions
    (SHA-256).
    """
    return stable_number(key) % one_in == 0


@dataclass(frozen=True)
class ExampleTable:
    """tokens: int16 (N, longest), padded; lengths, answer_starts: int64 (N,); weights: float64 (N,) or
    None.
    """

    tokens: NDArray[np.int16]
    lengths: NDArray[np.int64]
    answer_starts: NDArray[np.int64]
    weights: NDArray[np.float64] | None = None

    @classmethod
    def of(
        cls, examples: Iterable[Example], tokenizer: Tokenizer, weights: ArrayLike | None = None
    ) -> ExampleTable:
        """Encode examples; weights, if given, say how often each is drawn relative to the others."""
        rows = [(tokenizer.encode(example.prompt), tokenizer.encode(example.answer)) for example in examples]
        lengths = np.array([len(prompt) + len(answer) for prompt, answer in rows], dtype=np.int64)
        assert tokenizer.vocab_size <= 2**15, "tables are int16: generated tasks have small vocabularies"

        tokens = np.full((len(rows), int(lengths.max())), PAD, dtype=np.int16)
        for index, (prompt, answer) in enumerate(rows):
            tokens[index, : lengths[index]] = prompt + answer
        starts = np.array([len(prompt) for prompt, _ in rows], dtype=np.int64)
        return cls(
            tokens, lengths, starts, None if weights is None else np.asarray(weights, dtype=np.float64)
        )

    def scored(self, loss_on: LossOn) -> NDArray[np.bool_]:
        """Which tokens count in the loss: (N, longest)."""
        position = np.arange(self.tokens.shape[1])
        real: NDArray[np.bool_] = position < self.lengths[:, None]
        return real & (position >= self.answer_starts[:, None]) if loss_on == "answers" else real

    def batch(self, loss_on: LossOn) -> Batch:
        """The whole table as one batch, one example a row."""
        return shifted(self.tokens.astype(np.int64), self.scored(loss_on))


def random_fractions(seed: int, rows: NDArray[np.int64], slots: int) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1) for every (row, slot), each a pure function of (seed, row, slot).

    SplitMix64 (Steele et al., OOPSLA 2014) of a counter. Returns (len(rows), slots).
    """
    counter: NDArray[np.uint64] = rows.astype(np.uint64)[:, None] * np.uint64(0x100000001B3) + np.arange(
        slots
    ).astype(np.uint64)
    state = np.bitwise_xor(counter, mix(np.array([seed], dtype=np.uint64)))
    return (mix(state) >> np.uint64(11)).astype(np.float64) / 2.0**53


def mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The output function of SplitMix64, on arrays, wrapping."""
    with np.errstate(over="ignore"):
        value = value + np.uint64(0x9E3779B97F4A7C15)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return value ^ (value >> np.uint64(31))


class TableRows:
    """An endless sequence of rows drawn from a table with replacement."""

    def __init__(
        self, table: ExampleTable, *, seed: int, seq_len: int, layout: Layout, loss_on: LossOn, name: str
    ) -> None:
        """seq_len: targets per row. Raises ConfigError when an example does not fit one."""
        self.table, self.seed, self.layout, self.name = table, seed, layout, name
        longest = table.tokens.shape[1]
        if longest > seq_len + 1:
            raise ConfigError(
                f"the longest example has {longest} tokens, train.seq_len is {seq_len}; it must be at least "
                f"{longest - 1}"
            )
        self.scored = table.scored(loss_on)
        self.seq_len = seq_len
        self.slots = 1 if layout == "single" else -(-(seq_len + 1) // int(table.lengths.min()))
        self._cumulative = None if table.weights is None else np.cumsum(table.weights) / table.weights.sum()

    def rows(self, numbers: NDArray[np.int64]) -> Batch:
        """Batch of the rows with these numbers."""
        chosen = self._choose(random_fractions(self.seed, numbers, self.slots))  # (B, slots)
        if self.layout == "single":
            spare = ((0, 0), (0, self.seq_len + 1 - self.table.tokens.shape[1]))
            tokens, scored = self.table.tokens[chosen[:, 0]].astype(np.int64), self.scored[chosen[:, 0]]
            return shifted(np.pad(tokens, spare, constant_values=PAD), np.pad(scored, spare))
        return self._pack(chosen)

    def _choose(self, fractions: NDArray[np.float64]) -> NDArray[np.int64]:
        if self._cumulative is None:
            return (fractions * len(self.table.lengths)).astype(np.int64)
        return np.minimum(
            np.searchsorted(self._cumulative, fractions, side="right"), len(self.table.lengths) - 1
        )

    def _pack(self, chosen: NDArray[np.int64]) -> Batch:
        """Lay each row's examples end to end and cut at seq_len + 1 tokens. chosen: (B, slots)."""
        lengths = self.table.lengths[chosen]  # (B, slots)
        position = np.arange(self.table.tokens.shape[1])
        places = (np.cumsum(lengths, axis=1) - lengths)[:, :, None] + position  # (B, slots, longest)
        kept = (position < lengths[:, :, None]) & (places <= self.seq_len)
        row = np.broadcast_to(np.arange(len(chosen))[:, None, None], kept.shape)[kept]
        tokens = np.full((len(chosen), self.seq_len + 1), PAD, dtype=np.int64)
        scored = np.zeros(tokens.shape, dtype=bool)
        tokens[row, places[kept]] = self.table.tokens[chosen][kept]
        scored[row, places[kept]] = self.scored[chosen][kept]
        return shifted(tokens, scored)

    def epochs(self, rows: int) -> float:
        """Examples that so many rows show, over the examples there are: on average, as they are drawn with
        replacement.
        """
        per_row = 1.0 if self.layout == "single" else (self.seq_len + 1) / float(self.table.lengths.mean())
        return rows * per_row / len(self.table.lengths)

    def fingerprint(self) -> dict[str, Any]:
        """Size and hash of the table."""
        tokens = self.table.tokens
        return {
            **source_facts(self.name, int(self.table.lengths.sum()), tokens[tokens != PAD]),
            "table_sha256": ids_sha256(tokens),
            "examples": len(self.table.lengths),
            "sampling_strategy": f"random_with_replacement_{self.layout}",
        }
