"""What this machine does best, decided once at the start and written to provenance."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, cast, get_args

import torch

from bitnet.errors import ConfigError
from bitnet.nn.bitlinear import Product, has_fast_int8
from bitnet.nn.config import BitNetConfig
from bitnet.nn.packed_linear import InputGradient, WeightGradient, has_bf16_units, has_fast_packed
from bitnet.train.config import TrainConfig
from bitnet.train.precision import Form, Measurement, measured

AUTO_INPUT_GRADIENT: InputGradient = "float"
"""What `auto` takes with packed products. int8 is faster, and becomes the default here, in this line, once
three seeds of each experiment have shown that it learns the same."""

AUTO_WEIGHT_GRADIENT: WeightGradient = "fp32"
"""The same of precision fp32 on a CPU with bf16 units, where bf16 is faster."""

LARGE_VOCABULARY = 1024
"""From here on the fused loss is faster (docs/log.md: at 2,048 entries by a fifth in fp32 and 1.8 times in
bf16; at 32 there is nothing to gain)."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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
    input_gradient: InputGradient = "float"
    """How packed products compute the gradient of their inputs."""
    weight_gradient: WeightGradient = "fp32"
    """The format in which ternary layers multiply for the gradient of their weights."""
    fused_loss: bool = False
    """Whether the head and the cross-entropy are computed together (head_loss.py)."""
    fused_blocks: bool = False
    """Whether blocks train by the forms of nn/fused.py."""
    timed: Measurement | None = None
    """The measurement that chose between bf16 and fp32, if it was one."""

    @property
    def gradient_dtype(self) -> torch.dtype:
        """Of the gradient products on codes: bf16 or fp16 where autocast runs, else float32."""
        return torch.float16 if self.fp16 else torch.bfloat16 if self.bf16 else torch.float32

    @property
    def weight_dtype(self) -> torch.dtype:
        """Of weight_gradient."""
        return DTYPES[self.weight_gradient]


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


def choose_machine(
    config: TrainConfig,
    device: torch.device,
    before: Mapping[str, Any] | None = None,
    model: BitNetConfig | None = None,
) -> Machine:
    """The formats that a configuration takes on a device. Raises ConfigError for one that is not there.

    before: conditions that the run has trained under so far (run/sessions.py); `auto` goes on with them.
    model: what is trained; without it `auto` chooses what suits any model.
    """
    if config.precision == "fp16" and device.type != "cuda":
        raise ConfigError(
            "train.precision is fp16, which needs the tensor cores of a GPU: a CPU computes it more slowly "
            "than fp32, and no more exactly than bf16; use --train.precision bf16 or fp32, or --device cuda"
        )
    _check_compile(config, device)
    product = choose_product(config, device, before or {})
    if product == "autocast" and config.precision == "fp16":
        raise ConfigError(
            "train.product is autocast and train.precision fp16, in which sums of codes above 65,504 "
            "overflow; use --train.precision bf16, or --train.product int8"
        )
    before = before or {}
    machine = Machine(
        device,
        product,
        bf16=False,
        fp16=config.precision == "fp16",
        input_gradient=choose_input_gradient(config, product, before),
        fused_loss=choose_fused_loss(config, before, model),
        fused_blocks=choose_fused_blocks(config, product, device, before, model),
    )
    bf16, timed = _choose_bf16(config, machine, before, model)
    autocast: WeightGradient = "fp16" if machine.fp16 else "bf16" if bf16 else "fp32"
    weight_gradient = choose_weight_gradient(config, product, autocast, device, before, model)
    return dataclasses.replace(machine, bf16=bf16, weight_gradient=weight_gradient, timed=timed)


def _choose_bf16(
    config: TrainConfig, machine: Machine, before: Mapping[str, Any], model: BitNetConfig | None
) -> tuple[bool, Measurement | None]:
    """Whether to take bf16, and the measurement that said so. machine: all else that the time depends on."""
    if config.precision != "auto":
        return config.precision == "bf16", None
    if "gradient_dtype" in before:
        # On any machine: a curve in another format would be another curve.
        return _recorded(before, "gradient_dtype", ("float32", "bfloat16")) == "bfloat16", None
    device, product = machine.device, machine.product
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0), None
    if model is None or before:
        return False, None

    packed = product == "packed"
    beside = choose_weight_gradient(config, product, "fp32", device, before, model) if packed else "fp32"
    form = Form(product, machine.input_gradient, machine.fused_loss, machine.fused_blocks, beside)
    timed = measured(model, config, form)
    return timed is not None and timed.bf16_pays, timed


def _check_compile(config: TrainConfig, device: torch.device) -> None:
    """Raise ConfigError where CUDA graphs cannot be had."""
    if config.compile != "graphs":
        return
    if device.type != "cuda":
        raise ConfigError(
            f"train.compile is graphs, which are CUDA's, and the device is {device}; use --train.compile on"
        )
    # A graph writes every micro-batch's gradients to the same memory, which the sum of several reads.
    if config.grad_accumulation_steps > 1:
        raise ConfigError(
            f"train.compile is graphs and train.grad_accumulation_steps {config.grad_accumulation_steps}; "
            "use --train.grad-accumulation-steps 1 with a larger --batch-size, or --train.compile on"
        )


def choose_product(config: TrainConfig, device: torch.device, before: Mapping[str, Any]) -> Product:
    """How ternary layers multiply: as asked for, else as the run did before, else what is fastest here."""
    if config.product != "auto":
        return config.product
    if "linear_product" in before:
        return cast(Product, _recorded(before, "linear_product", get_args(Product)))
    return "packed" if has_fast_packed(device) else "int8" if has_fast_int8(device) else "float"


def choose_input_gradient(config: TrainConfig, product: Product, before: Mapping[str, Any]) -> InputGradient:
    """How the gradient of their inputs is computed. Raises ConfigError for one that the product cannot do."""
    if config.input_gradient == "int8" and product != "packed":
        raise ConfigError(
            f"train.input_gradient is int8, which packed products can do, but the product is {product}; "
            "leave it out, or use --train.product packed"
        )
    if config.input_gradient != "auto" or product != "packed":
        return "int8" if config.input_gradient == "int8" else "float"
    # A run whose sessions do not say was made before there was a choice.
    if "linear_product" in before:
        recorded = {"input_gradient": "float", **before}
        return cast(InputGradient, _recorded(recorded, "input_gradient", get_args(InputGradient)))
    return AUTO_INPUT_GRADIENT


def choose_weight_gradient(
    config: TrainConfig,
    product: Product,
    autocast: WeightGradient,
    device: torch.device,
    before: Mapping[str, Any],
    model: BitNetConfig | None = None,
) -> WeightGradient:
    """The format of the weight gradient: that of autocast, or one of its own with packed products.

    Raises ConfigError for one that the product cannot do.
    """
    if product != "packed" or (model is not None and not model.on_codes):
        taken: WeightGradient = "fp32" if product == "float" else autocast
        if config.weight_gradient not in ("auto", taken):
            raise ConfigError(
                f"train.weight_gradient is {config.weight_gradient}, which packed products can choose, but "
                f"the product is {product} and computes it in {taken}; leave it out, or use --train.product "
                "packed"
            )
        return taken
    if config.weight_gradient != "auto" or autocast != "fp32":
        return autocast if config.weight_gradient == "auto" else config.weight_gradient
    # A run whose sessions do not say was made before there was a choice. One that was trained under autocast
    # says what followed from that.
    if "linear_product" in before:
        chosen = before.get("gradient_dtype", "float32") == "float32" and "weight_gradient" in before
        recorded = _recorded(before, "weight_gradient", get_args(WeightGradient)) if chosen else "fp32"
        return cast(WeightGradient, recorded)
    return AUTO_WEIGHT_GRADIENT if has_bf16_units(device) else "fp32"


def choose_fused_loss(
    config: TrainConfig, before: Mapping[str, Any], model: BitNetConfig | None = None
) -> bool:
    """Whether head and cross-entropy are computed together. Preferences need all logits, and fp16 the loss
    scale before anything is rounded.
    """
    if config.fused == "off" or config.objective == "preference" or config.precision == "fp16":
        return False
    if config.fused == "on":
        return True
    # A run whose sessions do not say was made before there was a choice.
    if before:
        return before.get("fused_loss") is True
    return model is not None and model.vocab_size >= LARGE_VOCABULARY


def choose_fused_blocks(
    config: TrainConfig,
    product: Product,
    device: torch.device,
    before: Mapping[str, Any],
    model: BitNetConfig | None = None,
) -> bool:
    """Whether blocks train by the forms of nn/fused.py, which packed products have."""
    if config.fused == "off" or product != "packed" or (model is not None and not model.on_codes):
        return False
    if config.fused == "on":
        return True
    # A run whose sessions do not say was made before there was a choice.
    return before.get("fused_blocks") is True if before else has_fast_packed(device)


def _recorded(before: Mapping[str, Any], key: str, known: tuple[str, ...]) -> str:
    """A condition of the session before. Raises ConfigError where it is none that this version has."""
    if before[key] not in known:
        raise ConfigError(
            f"meta/sessions.jsonl says that {key} was {before[key]!r}, and this version knows only "
            f"{', '.join(known)}; go on with the version that the run was trained with, or begin another run"
        )
    return str(before[key])


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
        return config.compile != "off"
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
