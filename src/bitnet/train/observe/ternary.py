"""Statistics of the ternary weights and int8 activations of a model.

Shares are numbers from 0 to 1 (the seeds' names end in _pct all the same). Between 20% and 60% zeros is what
trained ternary models show; a Gaussian gives 31% at the start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bitnet.nn.bitlinear import BitLinear
from bitnet.nn.quantize import quantize_activations, row_scales
from bitnet.nn.transformer import BitNetTransformer

Codes = dict[str, Tensor]
INT8_LIMIT = 127


@torch.no_grad()
def zero_share(model: BitNetTransformer) -> float:
    """Share of ternary codes that are 0 over the whole model."""
    zeros, total = 0, 0
    for layer in model.bit_linears().values():
        codes = layer.weight_quantized
        zeros += int((codes == 0).sum())
        total += codes.numel()
    return zeros / total


@torch.no_grad()
def ternary_codes(model: BitNetTransformer) -> Codes:
    """A copy of the codes of every ternary layer: int8 (out, in) by short name."""
    return {name: layer.weight_quantized for name, layer in model.bit_linears().items()}


@torch.no_grad()
def ternary_statistics(
    model: BitNetTransformer, codes: Codes, previous: Codes, input_ids: Tensor
) -> dict[str, Any]:
    """One row of metrics/quantization.jsonl, without its step.

    codes: of the model now; previous: of the last probe; input_ids: int64 (B, T), for the activations.
    """
    row: dict[str, Any] = {}
    activations = activation_ranges(model, input_ids)
    for name, layer in model.bit_linears().items():
        row |= {f"{name}_{key}": value for key, value in _layer(layer, codes[name], previous[name]).items()}
        row |= {f"{name}_{key}": value for key, value in activations[name].items()}
    return {**_summary(row, codes), **row}


def _layer(layer: BitLinear, codes: Tensor, previous: Tensor) -> dict[str, Any]:
    """Statistics of one layer's weights."""
    # Scales are equal within a logical matrix, so that its first row has its scale.
    starts = [sum(layer.rows[:index]) for index in range(len(layer.rows))]
    return {
        "neg1_pct": float((codes == -1).float().mean()),
        "zero_pct": float((codes == 0).float().mean()),
        "pos1_pct": float((codes == 1).float().mean()),
        "flipped_pct": float((codes != previous).float().mean()),
        "scale": row_scales(layer.weight, layer.rows)[starts, 0].tolist(),
        "dead_rows": int((codes == 0).all(dim=1).sum()),
        "dead_cols": int((codes == 0).all(dim=0).sum()),
    }


def _summary(row: dict[str, Any], codes: Codes) -> dict[str, Any]:
    """The same over the whole model: shares weighted by size, dead rows and columns added up."""
    sizes = {name: tensor.numel() for name, tensor in codes.items()}
    total = sum(sizes.values())
    shares = ("neg1_pct", "zero_pct", "pos1_pct", "flipped_pct")
    summary: dict[str, Any] = {
        key: sum(row[f"{name}_{key}"] * size for name, size in sizes.items()) / total for key in shares
    }
    summary |= {key: sum(row[f"{name}_{key}"] for name in sizes) for key in ("dead_rows", "dead_cols")}
    summary["act_absmax"] = max(row[f"{name}_act_absmax"] for name in sizes)
    summary["act_clip_pct"] = sum(row[f"{name}_act_clip_pct"] for name in sizes) / len(sizes)
    return summary


@torch.no_grad()
def activation_ranges(model: BitNetTransformer, input_ids: Tensor) -> dict[str, dict[str, float]]:
    """act_absmax of every ternary layer's inputs, and act_clip_pct, the share of codes at the int8 limit."""
    seen: dict[str, dict[str, float]] = {}

    def look(name: str, x: Tensor) -> None:
        codes = quantize_activations(x).codes
        seen[name] = {
            "act_absmax": float(x.abs().max()),
            "act_clip_pct": float((codes.abs() >= INT8_LIMIT).float().mean()),
        }

    with watched_inputs(model, look):
        model(input_ids)
    return seen


@contextmanager
def watched_inputs(model: BitNetTransformer, look: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call look(name, input) whenever a ternary layer runs, inside the block only."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            look(name, inputs[0])

        return before

    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in model.bit_linears().items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
