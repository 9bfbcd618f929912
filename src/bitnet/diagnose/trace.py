"""Looking into a forward pass: the input and output of every part, and the matrix that a layer really
multiplies by.

The matrix is found from outside: fed with the unit vectors one by one, a linear layer answers with its
columns, and quantizing a unit vector to int8 is exact. What the layer's code claims plays no part.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bitnet.nn.transformer import BitNetTransformer

LOUD = 2.0
"""Standard deviation of queries and keys, about; their products are then of the order of one and more."""


class Passed(NamedTuple):
    """What went into a part (its first argument) and what came out, of its last call."""

    entered: Tensor
    left: Tensor


def traced(model: nn.Module, ids: Tensor, *, grad: bool = False) -> tuple[Tensor, dict[str, Passed]]:
    """Logits for ids, and what passed through every module, by its dotted name."""
    seen: dict[str, Passed] = {}

    def keep(name: str) -> Any:
        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
                seen[name] = Passed(args[0].detach(), output.detach())

        return after

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if name:
                stack.callback(module.register_forward_hook(keep(name)).remove)
        with torch.set_grad_enabled(grad):
            logits: Tensor = model(ids)
    return logits.detach(), seen


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """The parameters by name, without gradients."""
    return {name: weight.detach() for name, weight in model.named_parameters()}


@torch.no_grad()
def multiplied_by(layer: nn.Module, width: int, like: Tensor) -> Tensor:
    """The matrix (out, in) that a linear layer multiplies by."""
    found: Tensor = layer(torch.eye(width, dtype=like.dtype, device=like.device))
    return found.detach().T


def off(measured: Tensor, right: Tensor) -> float:
    """|measured - right| / |right| in the L2 norm; infinite where shapes differ or a value is not finite."""
    if measured.shape != right.shape:
        return float("inf")
    difference = float(torch.linalg.vector_norm(measured.double() - right.double()))
    size = float(torch.linalg.vector_norm(right.double()))
    if difference != difference:  # NaN
        return float("inf")
    return difference / size if size else (0.0 if difference == 0 else float("inf"))


def random_ids(vocabulary: int, rows: int, tokens: int, device: torch.device) -> Tensor:
    """Ids to look at a forward pass with: all kinds of tokens, always the same."""
    generator = torch.Generator().manual_seed(20240227)
    return torch.randint(vocabulary, (rows, tokens), generator=generator).to(device)


@torch.no_grad()
def made_loud(model: BitNetTransformer) -> BitNetTransformer:
    """The same model with queries and keys, and what attention adds, made large; in place.

    In a fresh model all attention is nearly even, whatever the positions: a wrong one would hardly show.
    """
    config = model.config
    for name, weight in model.named_parameters():
        if name.endswith("qkv_proj.weight"):
            both = weight[: (config.num_heads + config.num_kv_heads) * config.head_dim]
            both.mul_(max(1.0, LOUD / (float(both.std()) * config.hidden_size**0.5)))
        elif name.endswith("attention.out_proj.weight"):
            weight.mul_(10.0)
    return model
