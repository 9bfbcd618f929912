"""A packed model that reads tokens: one call into C for a prompt, and one for a step of any number of rows.

    decoder = PackedDecoder(config, weights)
    rows = decoder.new_rows(2, capacity=64)
    logits = rows.read({0: [1, 2, 3], 1: [4]})      float32 (2, V), after the last id of each text
    logits = rows.read({0: [7], 1: [9]})            a step
    rows.take_back(1, 0)                            row 1 ends, and is free for another text

Every size that C relies on is checked here, when a model is built and before a call; ids, rows and positions
are checked in C. Not here: choosing the next token (bitnet.generate), reading a run (packed_run.py).
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bitnet.allocator import machine_memory_bytes
from bitnet.engine.matrix import Matrix, MatrixStruct
from bitnet.engine.weights import LayerWeights, Weights
from bitnet.errors import ConfigError, DataError
from bitnet.kernels.arrays import MAX_THREADS, SIDE, Array, address, aligned_bytes
from bitnet.kernels.library import kernels
from bitnet.nn.config import BitNetConfig
from bitnet.nn.row_lengths import RowLengths

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_OK, _NO_MEMORY, _INVALID_BATCH = 0, 2, 4


class _Layer(ctypes.Structure):
    """`struct layer` of ternary.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("attn_norm", "ffn_norm", "attn_sub_norm", "ffn_sub_norm")),
        *((name, MatrixStruct) for name in ("qkv", "attn_out", "gate_up", "down")),
    )


class _Model(ctypes.Structure):
    """`struct model` of ternary.c."""

    _fields_ = (
        *(
            (name, ctypes.c_int64)
            for name in "vocab width layers heads kv_heads head_dim inner length relu2".split()
        ),
        ("eps", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("cos", "sin", "final_norm", "layer")),
        ("embeddings", MatrixStruct),
        ("head", MatrixStruct),
    )


class _Batch(ctypes.Structure):
    """`struct batch` of ternary.c."""

    _fields_ = (
        ("tokens", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("ids", "row", "position")),
        ("rows", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("cache", "capacity")),
        ("wanted", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("want", "logits")),
    )


class PackedDecoder:
    """A model in packed form, a bitnet.generate.decoder.Decoder. Calls from several threads take turns."""

    mixes_lengths = True

    def __init__(self, config: BitNetConfig, weights: Weights, *, threads: int | None = None) -> None:
        """threads: of every call, by default all cores of this process."""
        self.config, self.weights = config, weights
        self.threads = max(1, min(threads or available_cores(), MAX_THREADS))
        self._cos, self._sin = rotary_halves(config)
        if len(weights.layers) != config.num_layers:
            raise ValueError(f"{len(weights.layers)} layers, not {config.num_layers}")
        self._layers = (_Layer * config.num_layers)(*(_layer(config, layer) for layer in weights.layers))
        self._model = self._described()
        self._model_at = ctypes.addressof(self._model)
        self._workspace = np.empty(0, np.uint8)
        self._turn = threading.Lock()

    @property
    def device(self) -> torch.device:
        """Where it takes and returns tensors."""
        import torch

        return torch.device("cpu")

    def __call__(self, input_ids: Tensor, *, segments: Tensor | None = None) -> Tensor:
        """Logits after every token of whole texts: int64 (B, T) to float32 (B, T, V)."""
        import torch

        longest = self.config.max_seq_length
        if input_ids.shape[1] > longest:
            raise ConfigError(
                f"{input_ids.shape[1]} tokens do not fit the model's max_seq_length of {longest}; give it a "
                "shorter text"
            )
        reader, found = self.new_rows(1, input_ids.shape[1]), []
        for text in _texts(input_ids.numpy(), None if segments is None else segments.numpy()):
            reader.take_back(0, 0)
            found.append(reader.read({0: text}, every=True))
        return torch.from_numpy(np.concatenate(found)).view(*input_ids.shape, -1)

    def new_rows(self, count: int, capacity: int | None = None) -> PackedRows:
        """Room for `count` texts of up to `capacity` tokens (default: max_seq_length). Raises ConfigError
        where that is more than the machine's memory.
        """
        longest = self.config.max_seq_length
        return PackedRows(self, count, min(capacity or longest, longest))

    def cache_bytes(self, capacity: int) -> int:
        """Bytes of one text's keys and values."""
        library, _ = kernels()
        return 4 * int(library.decoder_cache_floats(self._model_at, -(-capacity // SIDE) * SIDE))

    def forward(self, rows: PackedRows, ids: Array, row: Array, position: Array, want: Array) -> Array:
        """Logits, float32 (wanted, V), of the tokens `want` of a batch.

        ids, row, position: int64 (tokens,), row being one of `rows`; want: int64 (wanted,), ascending.
        """
        tokens = len(ids)
        given = {"ids": ids, "row": row, "position": position, "want": want}
        for name, array in given.items():
            if array.dtype != np.int64 or array.ndim != 1 or not array.flags.c_contiguous:
                raise ValueError(f"{name} is not a contiguous row of int64")
        if not len(row) == len(position) == tokens or rows.decoder is not self:
            raise ValueError(f"{tokens} ids, {len(row)} rows, {len(position)} positions, of this decoder")

        logits = np.empty((len(want), self.config.vocab_size), np.float32)
        batch = _Batch(
            tokens,
            *(address(array) for array in (ids, row, position)),
            len(rows.lengths),
            address(rows.addresses),
            address(rows.capacities),
            len(want),
            address(want),
            address(logits),
        )
        library, path = kernels()
        with self._turn:
            room = int(library.decoder_workspace(self._model_at, tokens))
            if self._workspace.nbytes < room:
                self._workspace = aligned_bytes(room)
            status = library.decoder_forward(
                path, self._model_at, ctypes.addressof(batch), address(self._workspace), self.threads
            )
        if status == _NO_MEMORY:
            raise MemoryError("no memory for the working space of the packed engine")
        if status == _INVALID_BATCH:
            raise DataError(
                f"a token id is outside 0 to {self.config.vocab_size - 1}, or a text is longer than its "
                "cache; use the tokenizer of the model's run"
            )
        assert status == _OK, status
        return logits

    def _described(self) -> _Model:
        config, weights = self.config, self.weights
        sides = (config.vocab_size, config.hidden_size)
        return _Model(
            config.vocab_size,
            config.hidden_size,
            config.num_layers,
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            config.ffn_hidden_size,
            config.max_seq_length,
            int(config.activation == "relu2"),
            config.norm_eps,
            address(self._cos),
            address(self._sin),
            _norm(weights.final_norm, config.hidden_size),
            ctypes.addressof(self._layers),
            _matrix(weights.embeddings, *sides),
            _matrix(weights.head, *sides),
        )


class PackedRows(RowLengths):
    """Texts that are read and continued together, each with a length of its own."""

    def __init__(self, decoder: PackedDecoder, count: int, capacity: int) -> None:
        super().__init__(count, capacity)
        self.decoder = decoder
        size = decoder.cache_bytes(capacity)
        if count * size > machine_memory_bytes():
            raise ConfigError(
                f"{count} texts of {capacity} tokens need {count * size / 1e9:,.1f} GB for keys and values, "
                f"the machine has {machine_memory_bytes() / 1e9:,.1f}; use fewer or shorter ones"
            )
        # Memory that nobody has written to is not there yet: a row costs what it uses.
        self._caches = [np.empty(size // 4, np.float32) for _ in range(count)]
        self.addresses = np.array([address(cache) for cache in self._caches], np.uint64)
        self.capacities = np.full(count, -(-capacity // SIDE) * SIDE, np.int64)

    def read(self, texts: Mapping[int, Sequence[int]], *, every: bool = False) -> Array:
        """Append ids to rows. Returns float32 logits after the last id of each text (len(texts), V), in the
        order of `texts`; with `every`, after each id (all ids, V). Raises DataError where a row is full.
        """
        chosen, counts = self.room_for(texts)
        starts = self.lengths[chosen]
        ends = counts.cumsum()
        ids = np.fromiter((token for text in texts.values() for token in text), np.int64, int(ends[-1]))
        position = np.arange(ends[-1]) - np.repeat(ends - counts - starts, counts)
        want = np.arange(ends[-1]) if every else ends - 1
        logits = self.decoder.forward(self, ids, np.repeat(chosen, counts), position, want)
        self.lengths[chosen] += counts
        return logits

    def branch(self, row: int, into: int, target: PackedRows | None = None) -> None:
        """Make row `into` (of `target`, where given) read on from where `row` is, and forget its own text."""
        there = target or self
        assert there.decoder is self.decoder, "rows of another decoder"
        width, length = self.decoder.config.head_dim, int(self.lengths[row])
        assert length <= there.capacity, f"{length} tokens do not fit {there.capacity}"

        # The keys of 16 positions stand together; the values of each 16 dimensions are [position][16].
        old, new = self._heads(row), there._heads(into)
        keys = -(-length // SIDE) * SIDE * width
        new[:, :keys] = old[:, :keys]
        for part in range(-(-width // SIDE)):
            begin, other = self._values_at(part), there._values_at(part)
            new[:, other : other + length * SIDE] = old[:, begin : begin + length * SIDE]
        there.lengths[into] = length

    def _heads(self, row: int) -> Array:
        """The cache of a row: (layers * key/value heads, floats of one head)."""
        config = self.decoder.config
        return self._caches[row].reshape(config.num_layers * config.num_kv_heads, -1)

    def _values_at(self, part: int) -> int:
        """Where the values of 16 dimensions begin in the floats of one head."""
        return int(self.capacities[0]) * (self.decoder.config.head_dim + part * SIDE)


def rotary_halves(config: BitNetConfig) -> tuple[Array, Array]:
    """Cosines and sines of bitnet.nn.rotary, not repeated: float32 (max_seq_length, head_dim / 2)."""
    frequency = config.rope_theta ** (-np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim)
    angle = np.outer(np.arange(config.max_seq_length, dtype=np.float64), frequency)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def _texts(ids: Array, segments: Array | None) -> list[list[int]]:
    """The rows, cut where a segment begins: a token attends only to tokens of its own segment, and rotary
    positions tell it no more than their distances.
    """
    texts: list[list[int]] = []
    for index, row in enumerate(ids):
        cuts: Any = [] if segments is None else np.flatnonzero(np.diff(segments[index])) + 1
        texts += [part.tolist() for part in np.split(row, cuts)]
    return texts


def available_cores() -> int:
    """Cores that this process may use; OMP_NUM_THREADS, where it is set, as torch reads it."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdigit() and int(wanted) > 0:
        return int(wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _layer(config: BitNetConfig, layer: LayerWeights) -> _Layer:
    width, inner = config.hidden_size, config.ffn_hidden_size
    key = config.num_kv_heads * config.head_dim
    return _Layer(
        _norm(layer.attn_norm, width),
        _norm(layer.ffn_norm, width),
        _norm(layer.attn_sub_norm, width) if config.sub_norm else None,
        _norm(layer.ffn_sub_norm, inner) if config.sub_norm else None,
        _matrix(layer.qkv, width + 2 * key, width),
        _matrix(layer.attn_out, width, width),
        _matrix(layer.gate_up, 2 * inner, width),
        _matrix(layer.down, width, inner),
    )


def _norm(weight: Array, width: int) -> int:
    if weight.shape != (width,) or weight.dtype != np.float32 or not weight.flags.c_contiguous:
        raise ValueError(f"a norm is {weight.dtype} {weight.shape}, not float32 ({width},)")
    return address(weight)


def _matrix(matrix: Matrix, out: int, width: int) -> MatrixStruct:
    if (matrix.out_features, matrix.in_features) != (out, width):
        raise ValueError(f"a matrix is {matrix.out_features} x {matrix.in_features}, not {out} x {width}")
    if matrix.format == "ternary" and not matrix.int8_inputs:
        raise ValueError("a ternary matrix takes int8 inputs")
    return matrix.struct()
