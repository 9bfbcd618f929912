"""A BitNetTransformer in packed form: its weights as they are now, with its own codes and scales."""

from __future__ import annotations

import torch

from bitnet.engine.decoder import PackedDecoder
from bitnet.engine.matrix import DenseFormat
from bitnet.engine.weights import pack_weights
from bitnet.kernels.arrays import Array
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
