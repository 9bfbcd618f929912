"""What this machine does best, decided once at the start and written to provenance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec

import torch

from bitnet.errors import ConfigError
from bitnet.nn.bitlinear import Product, has_fast_int8
from bitnet.train.config import TrainConfig


@dataclass(frozen=True)
class Machine:
    """A device and the number formats that a run uses on it."""

    device: torch.device
    product: Product
    """How ternary layers multiply."""
    bf16: bool
    """Autocast to bf16."""
    fp16: bool = False
    """Autocast to fp16, with loss scaling."""

    @property
    def gradient_dtype(self) -> torch.dtype:
        """Of the gradient products on the int8 path: bf16 or fp16 where autocast runs, else float32."""
        return torch.float16 if self.fp16 else torch.bfloat16 if self.bf16 else torch.float32


def choose_device(name: str) -> torch.device:
    """auto, cpu or cuda. Raises ConfigError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise ConfigError(f"--device is {name!r}; it must be auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "--device is cuda but this PyTorch sees no GPU; use --device cpu or install the CUDA build"
        )
    return torch.device(name)


def choose_machine(config: TrainConfig, device: torch.device) -> Machine:
    """The formats that a configuration takes on a device. Raises ConfigError for one that is not there."""
    if config.precision == "fp16" and device.type != "cuda":
        raise ConfigError(
            "train.precision is fp16, which needs the tensor cores of a GPU: a CPU computes it more slowly "
            "than fp32, and no more exactly than bf16; use --train.precision bf16 or fp32, or --device cuda"
        )
    fast_bf16 = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    bf16 = fast_bf16 if config.precision == "auto" else config.precision == "bf16"
    product: Product = (
        config.product if config.product != "auto" else "int8" if has_fast_int8(device) else "float"
    )
    return Machine(device, product, bf16, fp16=config.precision == "fp16")


def refuse_several_processes(environment: Mapping[str, str]) -> None:
    """Raise ConfigError where a launcher such as torchrun started this process as one of several."""
    rank, world_size = environment.get("RANK", "0"), environment.get("WORLD_SIZE", "1")
    try:
        alone = (int(rank), int(world_size)) == (0, 1)
    except ValueError:
        raise ConfigError(
            f"RANK is {rank!r} and WORLD_SIZE is {world_size!r}; they must be whole numbers, as torchrun "
            "sets them, or not set"
        ) from None
    if not alone:
        raise ConfigError(
            f"this is process {rank} of {world_size}, but training does not exchange gradients between "
            "processes yet, so each would train a model of its own; start a single process, without torchrun"
        )


def wants_compile(config: TrainConfig, device: torch.device) -> bool:
    """Whether to try torch.compile. auto: on CUDA with Triton; on CPUs it costs short runs more than it
    saves.
    """
    if config.compile != "auto":
        return config.compile == "on"
    return device.type == "cuda" and find_spec("triton") is not None


# Dense bf16 tensor-core rates in FLOP/s, from NVIDIA's data sheets. Other devices get no utilisation figure.
_PEAK_BF16 = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


def peak_flops(device: torch.device) -> float | None:
    """Peak bf16 rate of this device, where it is known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in _PEAK_BF16.items() if key in name), None)
