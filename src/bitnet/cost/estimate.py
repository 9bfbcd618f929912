"""What a run takes, as one value: parameters, tokens, operations, memory, disk, time and money.

Everything follows from the configuration, except rates and prices. These come from a table of devices and are
assumptions unless the row says measured. Time is operations divided by a device's sustained rate, plus the
launches of its kernels. Reading data, evaluation and checkpoints come on top (about 3% in the quick
arithmetic run).
"""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bitnet.cost.devices import Device
from bitnet.cost.flops import optimizer_flops
from bitnet.cost.memory import (
    FLOAT,
    DeviceType,
    Memory,
    memory_of,
    numerics_on,
    optimizer_bytes,
    ternary_shapes,
    ternary_weights,
)
from bitnet.errors import ConfigError
from bitnet.nn.config import BitNetConfig
from bitnet.nn.packing import PER_BYTE
from bitnet.run.checkpoint import retained_steps
from bitnet.train.config import TrainConfig

CHINCHILLA = 20  # tokens for each parameter (arXiv:2203.15556), the plan's target
CARDS_GB = (8, 12, 24, 80)
MOST_ROWS = 1 << 20  # the search ends here
MOST = 10**15  # parameters, updates, tokens an update: a larger figure is a typing mistake

# Beside tensors. CPU: what Python, torch and its compiled kernels held after one small update (torch 2.13,
# Linux x86-64). CUDA: context and libraries, a guess.
PROCESS_BYTES: dict[DeviceType, int] = {"cpu": 360_000_000, "cuda": 500_000_000}
# Bytes that the allocator holds for each byte of tensors at their peak. CPU: glibc's heap, which
# train/device.py tells to keep what is freed, fitted to four runs (docs/costs.md). CUDA: a guess.
HELD: dict[DeviceType, float] = {"cpu": 2.05, "cuda": 1.1}


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Whether a card of `gb` GB (10^9 bytes) holds the run; its largest micro-batch, or 0."""

    gb: float
    fits: bool
    largest_batch: int


@dataclass(frozen=True, kw_only=True)
class OnDevice:
    """Time and price on one device. usd is None without a price, fit is None if its memory is not known."""

    device: Device
    seconds: float
    usd: float | None
    fit: Fit | None


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Sizes are in bytes. The modules of bitnet.cost explain them."""

    parameters: int
    breakdown: dict[str, int]
    ternary_parameters: int
    tokens: int
    updates: int
    tokens_per_update: int
    tokens_per_parameter: float
    tokens_at_20: int
    flops_per_token: float
    optimizer_flops_per_update: float
    flops: float
    memory: dict[DeviceType, Memory]
    process_bytes: dict[DeviceType, int]
    fits: tuple[Fit, ...]
    checkpoint_bytes: int
    checkpoints_kept: int
    disk_bytes: int
    packed_bytes: int
    packed_bf16_bytes: int
    devices: tuple[OnDevice, ...]

    def to_json(self) -> dict[str, Any]:
        """Every figure, the peak of each memory included."""
        values = dataclasses.asdict(self)
        for device, memory in self.memory.items():
            values["memory"][device]["peak"] = memory.peak
        return values


def estimate(model: BitNetConfig, train: TrainConfig, devices: Sequence[Device]) -> Estimate:
    """What training this model in this way takes, for one process. Raises ConfigError for absurd sizes."""
    sizes = {"the number of parameters": model.total_params, "train.total_steps": train.total_steps}
    for name, value in {**sizes, "the number of tokens in an update": train.tokens_per_step}.items():
        if value > MOST:
            raise ConfigError(f"{name} is {value:.3g}; lower it to 10^15 at most")
    ternary, matrices = 0, 0
    if model.weights == "ternary":
        ternary, matrices = ternary_weights(model), ternary_shapes(model).total()
    rest = model.total_params - ternary

    per_token, per_update = model.flops_per_token(train.seq_len), optimizer_flops(model, train.optimizer)
    flops = per_token * train.total_tokens + per_update * train.total_steps
    kept = kept_checkpoints(train)
    each = checkpoint_bytes(model, train)
    kinds: tuple[DeviceType, ...] = ("cuda", "cpu")

    return Estimate(
        parameters=model.total_params,
        breakdown=model.parameter_breakdown(),
        ternary_parameters=ternary,
        tokens=train.total_tokens,
        updates=train.total_steps,
        tokens_per_update=train.tokens_per_step,
        tokens_per_parameter=train.total_tokens / model.total_params,
        tokens_at_20=CHINCHILLA * model.total_params,
        flops_per_token=per_token,
        optimizer_flops_per_update=per_update,
        flops=flops,
        memory={kind: memory_of(model, train, numerics_on(kind, model, train)) for kind in kinds},
        process_bytes={kind: process_bytes(model, train, kind) for kind in kinds},
        fits=tuple(fit(model, train, "cuda", gb) for gb in CARDS_GB),
        checkpoint_bytes=each,
        checkpoints_kept=kept,
        disk_bytes=each * (kept + 1),  # a new one is whole before an old one goes
        packed_bytes=ternary // PER_BYTE + FLOAT * (matrices + rest),
        packed_bf16_bytes=ternary // PER_BYTE + 2 * (matrices + rest),
        devices=tuple(_on_device(device, model, train, flops) for device in devices),
    )


def with_tokens(train: TrainConfig, tokens: float) -> TrainConfig:
    """The same settings over at least this many tokens."""
    if not (tokens > 0 and math.isfinite(tokens)):
        raise ConfigError(f"{tokens:g} tokens are asked for; it must be a positive number")
    return train.with_total_steps(math.ceil(tokens / train.tokens_per_step))


def kept_checkpoints(train: TrainConfig) -> int:
    """The checkpoints that a finished run keeps, by the rule of training."""
    mandatory = train.mandatory_checkpoints()
    regular = range(0, train.total_steps + 1, train.checkpoint_every)
    candidates = {*mandatory, *regular[-train.keep_last or len(regular) :]}
    kept = retained_steps(
        candidates, mandatory=mandatory, keep_last=train.keep_last, keep_every=train.keep_every
    )
    # a range, because these may be very many
    periodic = range(0, train.total_steps + 1, math.lcm(train.checkpoint_every, train.keep_every))
    return len(kept) + len(periodic) - sum(step in periodic for step in kept)


def checkpoint_bytes(model: BitNetConfig, train: TrainConfig) -> int:
    """Weights, optimizer state, and the packed codes of the last probe; not a few kB of names and states."""
    codes = ternary_weights(model) // PER_BYTE
    return FLOAT * model.total_params + optimizer_bytes(model, train.optimizer) + codes


def process_bytes(model: BitNetConfig, train: TrainConfig, kind: DeviceType) -> int:
    """Memory of the whole process, or of the card: the allocator's at the peak of tensors, and the rest."""
    tensors = memory_of(model, train, numerics_on(kind, model, train)).peak
    return PROCESS_BYTES[kind] + round(HELD[kind] * tensors)


def fit(model: BitNetConfig, train: TrainConfig, kind: DeviceType, gb: float) -> Fit:
    """Whether this run fits into `gb` GB. A card of that name has as many GiB; the difference is a margin."""

    def needed(rows: int) -> int:
        return process_bytes(model, dataclasses.replace(train, batch_size=rows), kind)

    room = int(gb * 1e9)
    largest = bisect.bisect_right(range(1, MOST_ROWS + 1), room, key=needed)
    return Fit(gb=gb, fits=train.batch_size <= largest, largest_batch=largest)


def _on_device(device: Device, model: BitNetConfig, train: TrainConfig, flops: float) -> OnDevice:
    passes = model.num_layers * train.grad_accumulation_steps * train.total_steps
    seconds = flops / device.flops_per_second + passes * device.launch_ms_per_layer / 1e3
    usd = None if device.usd_per_hour is None else device.usd_per_hour * seconds / 3600
    fitting = None if device.memory_gb is None else fit(model, train, device.kind, device.memory_gb)
    return OnDevice(device=device, seconds=seconds, usd=usd, fit=fitting)
