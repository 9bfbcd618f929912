"""The int8 codes that the packed engine multiplies, and a PyTorch pass that is given them.

Every input of a ternary layer is rounded to an int8 code, round(x * 127 / max|x|). The engine and PyTorch
add floats in different orders, so x differs in its last bits, and where x * 127 / max|x| is almost half-way
between two codes they can get different ones. `forced` runs PyTorch layer by layer with the engine's codes,
and names each input at which its own code would have been another. As all codes before it are the same, such
an input must be half-way; and as all products get the same codes, the logits must agree to the last digits.

The engine is one call into C, so its codes are found from outside: the model is packed again up to a layer,
with matrices that pass the codes of one product on to the logits. Not here: which texts are compared
(equality.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from bitnet.engine.decoder import PackedDecoder
from bitnet.engine.matrix import Matrix, pack_dense
from bitnet.engine.weights import LayerWeights, Weights
from bitnet.kernels.arrays import Array
from bitnet.nn.quantize import Int8Rows, quantize_activations
from bitnet.nn.transformer import BitNetTransformer

PARTS = 4  # products of a layer: q, k and v; output of attention; gate and up; down
LOUD = 2.0**30
"""What codes are multiplied by before they are added to the residual stream, which is nothing beside them."""


class OtherCode(NamedTuple):
    """An input that PyTorch and the engine round to different codes. exact: x * 127 / max|x| in PyTorch."""

    layer: str
    token: int
    input: int
    torch: int
    engine: int
    exact: float

    @property
    def from_half(self) -> float:
        """How far it is from half-way between the two codes; infinite where they are no neighbours."""
        neighbours = abs(self.torch - self.engine) == 1
        return abs(self.exact - (self.torch + self.engine) / 2) if neighbours else float("inf")


class EngineCodes:
    """The codes of every product of a packed model, for one text. Embeddings are the model's own."""

    def __init__(self, model: BitNetTransformer, weights: Weights, ids: Sequence[int]) -> None:
        self.config, self.ids, self._weights = model.config, list(ids), weights
        # The logits have to be as many as the inputs that they stand for.
        self._entries = max(self.config.vocab_size, self.config.hidden_size)
        table = model.token_embeddings.weight.detach().float().numpy()
        self._embeddings = self._dense(np.pad(table, ((0, self._entries - len(table)), (0, 0))))
        self._passed: dict[int, list[Array]] = {}

    def of(self, product: int, start: int, like: Array) -> Array:
        """Codes of some tokens from `start`. product: 4 * layer + part; like: int8 (T, in), PyTorch's codes,
        which most of them equal. Returns int8 (T, in).
        """
        if product not in self._passed:
            self._passed[product] = self._values(*divmod(product, PARTS))
        parts = self._passed[product]
        codes = np.empty_like(like)
        for number, values in enumerate(parts):
            columns = slice(number, None, len(parts))
            codes[:, columns] = scaled(values[start : start + len(like)], like[:, columns])
        return codes

    def _values(self, layer: int, part: int) -> list[Array]:
        """Codes times a factor for each token, float32 (T, in); of `down` in several interleaved sets."""
        before, this = self._weights.layers[:layer], self._weights.layers[layer]
        width, inner = self.config.hidden_size, self.config.ffn_hidden_size
        silent = self._dense(np.zeros((width, inner)))
        if part == 0:
            quiet = this._replace(attn_out=self._dense(np.zeros((width, width))), down=silent)
            return [self._read((*before, quiet), this.attn_norm, int8=True)]
        if part == 2:
            return [self._read((*before, this._replace(down=silent)), this.ffn_norm, int8=True)]
        plain = np.ones(width, np.float32)
        if part == 1:
            loud = this._replace(attn_out=self._picking(np.arange(width), width), down=silent)
            return [self._read((*before, loud), plain)]
        sets = -(-inner // width)
        chosen = [np.arange(number, inner, sets) for number in range(sets)]
        return [
            self._read((*before, this._replace(down=self._picking(columns, inner))), plain)[:, : len(columns)]
            for columns in chosen
        ]

    def _read(self, layers: tuple[LayerWeights, ...], norm: Array, *, int8: bool = False) -> Array:
        """What a model of these layers has after its last norm: as it is, or int8 codes times their step."""
        width = self.config.hidden_size
        head = self._dense(np.eye(self._entries, width), int8=int8)
        config = dataclasses.replace(self.config, num_layers=len(layers), vocab_size=self._entries)
        decoder = PackedDecoder(config, Weights(self._embeddings, head, norm, layers), threads=1)
        return decoder.new_rows(1, len(self.ids)).read({0: self.ids}, every=True)[:, :width]

    def _picking(self, columns: Array, inputs: int) -> Matrix:
        """A matrix that writes the codes of these columns into the residual stream, loudly."""
        matrix = np.zeros((self.config.hidden_size, inputs))
        matrix[np.arange(len(columns)), columns] = LOUD
        return self._dense(matrix, int8=True)

    @staticmethod
    def _dense(matrix: Array, *, int8: bool = False) -> Matrix:
        return pack_dense(matrix.astype(np.float32), "f32", int8_inputs=int8)


def scaled(values: Array, like: Array) -> Array:
    """Codes from codes times an unknown factor: the factor is the usual one of the inputs that are large.

    values: float32 (T, in); like: int8 (T, in), nearly the codes. Returns int8 (T, in).
    """
    codes = np.zeros_like(like)
    for row, near, found in zip(values, like.astype(np.float64), codes, strict=True):
        large = np.abs(near) >= max(np.abs(near).max(initial=0) / 2, 1)
        if large.any():
            found[:] = np.rint(row / np.median(row[large] / near[large]))
    return codes


class Forced(NamedTuple):
    """logits: float32 (T, V) of PyTorch with the engine's codes; others: where its own code was another;
    codes: how many there were.
    """

    logits: Tensor
    others: list[OtherCode]
    codes: int


@torch.no_grad()
def forced(
    model: BitNetTransformer,
    weights: Weights,
    ids: Sequence[int],
    *,
    cuts: Sequence[int] = (),
    rows: int = 1,
    row: int = 0,
) -> Forced:
    """A text read by PyTorch with the engine's codes.

    weights: the same model as the engine holds it, with an f32 head; cuts: where the text is cut into calls,
    as decoding does; rows, row: of a batch whose other rows hold the same text, since the order of PyTorch's
    sums depends on the batch.
    """
    engine, names = EngineCodes(model, weights, ids), list(model.bit_linears())
    others: list[OtherCode] = []
    called = start = counted = 0

    def quantize(x: Tensor) -> Int8Rows:
        nonlocal called, counted
        own = real(x)
        codes = own.codes.reshape(rows, -1, x.shape[-1]).clone()  # (B, T, in)
        largest = x.detach().abs().reshape(codes.shape)[row].double().amax(-1, keepdim=True)  # (T, 1)
        mine = codes[row].numpy().copy()
        theirs = engine.of(called, start, mine)
        for token, place in np.argwhere(mine != theirs).tolist():
            exact = x.reshape(codes.shape)[row, token, place].double() * 127 / largest[token, 0]
            pair = int(mine[token, place]), int(theirs[token, place])
            others.append(OtherCode(names[called], start + token, place, *pair, float(exact)))
        codes[row] = torch.from_numpy(theirs)
        called, counted = (called + 1) % len(names), counted + theirs.size
        return Int8Rows(codes.view(own.codes.shape), own.step)

    parts = []
    cache = model.new_cache(rows, len(ids))
    with quantizing_by(quantize) as real:
        for begin, end in zip([0, *cuts], [*cuts, len(ids)], strict=True):
            start = begin
            piece = torch.tensor([list(ids[begin:end])] * rows)
            parts.append(model(piece, cache)[row])
    return Forced(torch.cat(parts), others, counted)


@contextmanager
def quantizing_by(quantize: Any) -> Iterator[Any]:
    """Inside the block the layers of every model quantise their inputs in this way; gives the usual one."""
    with mock.patch("bitnet.nn.bitlinear.quantize_activations", quantize):
        yield quantize_activations
