"""A model's weights as the packed engine holds them, from named float32 arrays.

Names are those of BitNetTransformer's parameters. Which format each part gets follows from the configuration
and the format of the head:

    projections   ternary at 2 bits; with --weights full as dense matrices; ternary weights whose inputs are
                  not quantised as int8, which holds -1, 0 and 1 exactly
    head          f32, bf16, int8 or int4, as asked for
    embeddings    the head itself where they are tied and it has at least 8 bits; else the head's format, or
                  int8 beside an int4 head
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from bitnet.engine.matrix import DenseFormat, Matrix, pack_dense, pack_ternary, ternarize
from bitnet.errors import DataError
from bitnet.kernels import library
from bitnet.kernels.arrays import Array
from bitnet.nn.config import BitNetConfig

SMALL_VOCABULARY = 4096  # entries up to which an f32 head costs less than the layers of any model here
Ternarize = Callable[[str, Array, tuple[int, ...]], tuple[Array, Array]]
"""(name, weight, rows of each logical matrix) to int8 codes and float32 scales of the rows."""


class LayerWeights(NamedTuple):
    """One layer. A norm is float32 (width,), or empty where the model has none."""

    attn_norm: Array
    ffn_norm: Array
    attn_sub_norm: Array
    ffn_sub_norm: Array
    qkv: Matrix
    attn_out: Matrix
    gate_up: Matrix
    down: Matrix


class Weights(NamedTuple):
    """All of a model."""

    embeddings: Matrix
    head: Matrix
    final_norm: Array
    layers: tuple[LayerWeights, ...]

    def matrices(self) -> Iterator[Matrix]:
        """Every matrix, one that is both embedding and head once."""
        yield self.embeddings
        if self.head is not self.embeddings:
            yield self.head
        for layer in self.layers:
            yield from (layer.qkv, layer.attn_out, layer.gate_up, layer.down)

    @property
    def nbytes(self) -> int:
        """Bytes of all matrices."""
        return sum(matrix.data.nbytes + matrix.scale.nbytes for matrix in self.matrices())


def default_head(config: BitNetConfig) -> DenseFormat:
    """The format of the head where none is asked for."""
    return "f32" if config.vocab_size <= SMALL_VOCABULARY else "int8"


def default_full(head: DenseFormat) -> DenseFormat:
    """The format of projections that are not ternary, beside a head of this format."""
    return "f32" if head == "f32" else "bf16"


def engine_name(config: BitNetConfig, head: DenseFormat) -> str:
    """The packed engine in words: its kernel path, the format of its head and, where the projections are full
    matrices, theirs.
    """
    projections = f", projections {default_full(head)}" if config.weights == "full" else ""
    return f"packed ({library.path()}, head {head}{projections})"


def without_torch(name: str, weight: Array, rows: tuple[int, ...]) -> tuple[Array, Array]:
    """The quantizer where torch is not loaded."""
    return ternarize(weight, rows)


def parameter_shapes(config: BitNetConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model's parameters."""
    width, inner = config.hidden_size, config.ffn_hidden_size
    key = config.num_kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {"token_embeddings.weight": (config.vocab_size, width)}
    for layer in range(config.num_layers):
        block = {
            "pre_attn_norm": (width,),
            "attention.qkv_proj": (width + 2 * key, width),
            **({"attention.sub_norm": (width,)} if config.sub_norm else {}),
            "attention.out_proj": (width, width),
            "pre_ffn_norm": (width,),
            "feedforward.gate_up": (2 * inner, width),
            **({"feedforward.sub_norm": (inner,)} if config.sub_norm else {}),
            "feedforward.down": (width, inner),
        }
        shapes |= {f"blocks.{layer}.{name}.weight": shape for name, shape in block.items()}
    shapes["final_norm.weight"] = (width,)
    return shapes if config.embeddings_tied else {**shapes, "lm_head.weight": (config.vocab_size, width)}


def pack_weights(
    config: BitNetConfig,
    arrays: Mapping[str, Any],
    *,
    head: DenseFormat,
    full: DenseFormat | None = None,
    quantizer: Ternarize = without_torch,
    threads: int = 1,
) -> Weights:
    """arrays: float32 by parameter name; each is taken when it is packed and not kept, so that they may come
    from a file one by one. full: the format of projections that are not ternary, by default f32 beside an f32
    head and else bf16. Raises DataError where a name or a shape is not the configuration's, or a weight is
    not finite.
    """
    shapes = parameter_shapes(config)
    if odd := sorted(arrays.keys() ^ shapes.keys()):
        raise _differs(odd[0])

    packer = _Packer(config, arrays, shapes, full or default_full(head), quantizer, threads)
    # A head of integers takes the inputs that ternary layers take: 8 bits, one step for each token.
    int8_inputs = head in ("int8", "int4")
    embeddings = packer.dense(
        "token_embeddings.weight", "int8" if head == "int4" else head, int8_inputs=int8_inputs
    )
    if not config.embeddings_tied:
        out = packer.dense("lm_head.weight", head, int8_inputs=int8_inputs)
    elif head == "int4":
        out = packer.dense("token_embeddings.weight", head, int8_inputs=int8_inputs)
    else:
        out = embeddings
    layers = tuple(packer.layer(index) for index in range(config.num_layers))
    return Weights(embeddings, out, packer.norm("final_norm"), layers)


def _differs(name: str) -> DataError:
    return DataError(f"the weights do not fit the model: {name} differs; use the run's own checkpoint")


class _Packer(NamedTuple):
    config: BitNetConfig
    arrays: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    full: DenseFormat
    quantizer: Ternarize
    threads: int

    def array(self, name: str) -> Array:
        array: Array = self.arrays[name]
        if array.shape != self.shapes[name]:
            raise _differs(name)
        if array.dtype.kind != "f" or not np.isfinite(array.sum(dtype=np.float64)):
            raise DataError(f"{name} holds values that are not finite, or no real numbers")
        return array

    def dense(self, name: str, form: DenseFormat, *, int8_inputs: bool = False) -> Matrix:
        return pack_dense(self.array(name), form, int8_inputs=int8_inputs, threads=self.threads)

    def norm(self, name: str) -> Array:
        name = f"{name}.weight"
        return np.array(self.array(name), np.float32) if name in self.shapes else np.empty(0, np.float32)

    def projection(self, name: str, rows: tuple[int, ...]) -> Matrix:
        config, name = self.config, f"{name}.weight"
        if config.weights == "full":
            return self.dense(name, self.full, int8_inputs=config.activations == "int8")
        codes, scale = self.quantizer(name, self.array(name), rows)
        if config.activations == "int8":
            return pack_ternary(codes, scale, self.threads)
        return pack_dense(codes * scale.reshape(-1, 1), "int8", threads=self.threads)

    def layer(self, index: int) -> LayerWeights:
        config, block = self.config, f"blocks.{index}"
        width, key, inner = config.hidden_size, config.num_kv_heads * config.head_dim, config.ffn_hidden_size
        return LayerWeights(
            attn_norm=self.norm(f"{block}.pre_attn_norm"),
            ffn_norm=self.norm(f"{block}.pre_ffn_norm"),
            attn_sub_norm=self.norm(f"{block}.attention.sub_norm"),
            ffn_sub_norm=self.norm(f"{block}.feedforward.sub_norm"),
            qkv=self.projection(f"{block}.attention.qkv_proj", (width, key, key)),
            attn_out=self.projection(f"{block}.attention.out_proj", (width,)),
            gate_up=self.projection(f"{block}.feedforward.gate_up", (inner, inner)),
            down=self.projection(f"{block}.feedforward.down", (width,)),
        )
