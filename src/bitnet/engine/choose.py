"""Which engine computes a model: the packed one where it can, else PyTorch.

The packed engine needs the compiled kernels and runs on the CPU. By default its head is as exact as the model
where it is small, and int8 where it is large: what that costs is in docs/inference.md.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

from bitnet.engine.from_torch import packed
from bitnet.engine.matrix import DenseFormat
from bitnet.engine.weights import default_head, engine_name
from bitnet.errors import ConfigError, DataError
from bitnet.generate.decoder import Decoder
from bitnet.kernels import library
from bitnet.nn.bitlinear import has_fast_int8
from bitnet.nn.transformer import BitNetTransformer

Engine = Literal["auto", "packed", "torch"]


class Chosen(NamedTuple):
    """model: what computes; name: `packed` or `torch`, with its details; note: why it is not the packed one,
    where that is worth a line.
    """

    model: Decoder
    name: str
    note: str = ""


def choose_engine(model: BitNetTransformer, engine: Engine, head: DenseFormat | None) -> Chosen:
    """The model itself, ready to infer, or its packed form. Raises ConfigError where `packed` or a head is
    asked for and cannot be had.
    """
    device = model.device
    obstacle = _obstacle(device) if engine != "torch" else "--engine torch was given"
    if not obstacle:
        try:
            form = head or default_head(model.config)
            return Chosen(packed(model, head=form), engine_name(model.config, form))
        except DataError as error:
            obstacle = str(error)
    if engine == "packed" or head is not None:
        raise ConfigError(
            f"the packed engine cannot be used: {obstacle}; leave --engine and --head out to use PyTorch"
        )

    model.set_product("int8" if has_fast_int8(device) else "float")
    note = "" if engine == "torch" or device.type != "cpu" else f"PyTorch computes this model: {obstacle}"
    return Chosen(model, "torch", note)


def _obstacle(device: torch.device) -> str:
    """Why a model on this device cannot be packed; empty where it can."""
    if device.type != "cpu":
        return f"it runs on the CPU, and the device is {device.type}"
    return library.describe() if library.path() == library.TORCH else ""
