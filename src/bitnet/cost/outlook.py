"""What `bitnet train` says of a run before its first step: memory, disk and time. Nothing is measured."""

from __future__ import annotations

from bitnet.allocator import machine_memory_bytes
from bitnet.cost.devices import load_devices
from bitnet.cost.estimate import estimate
from bitnet.cost.memory import memory_of, numerics_on
from bitnet.errors import ConfigError
from bitnet.train.config import RunConfig
from bitnet.units import byte_size, duration


def refuse_beyond_memory(config: RunConfig, device_type: str) -> None:
    """Raise ConfigError if weights, gradients and optimizer alone exceed the machine's memory.

    Without this the system would end the process in the middle of the work. device_type: cpu or cuda; only
    the CPU's memory is checked.
    """
    if device_type != "cpu":
        return
    memory = memory_of(config.model, config.train, numerics_on("cpu", config.model, config.train))
    least, there = memory.weights + memory.gradients + memory.optimizer, machine_memory_bytes()

    if least > there:
        raise ConfigError(
            f"this model takes {byte_size(least)} for weights, gradients and optimizer alone, and the "
            f"machine has {byte_size(there)}; lower --model.hidden-size, --model.num-layers or "
            "--model.vocab-size"
        )


def outlook(config: RunConfig) -> list[str]:
    """Lines about the memory, disk and time of a run."""
    found = estimate(config.model, config.train, load_devices())
    memory = ", ".join(f"{kind} {byte_size(count)}" for kind, count in found.process_bytes.items())

    times = [
        f"{row.device.name} {duration(row.seconds)}"
        + ("" if row.fit is None or row.fit.fits else f" in micro-batches of {row.fit.largest_batch}")
        for row in found.devices
        if row.fit is None or row.fit.largest_batch
    ]
    return [
        f"  tokens for each parameter {found.tokens_per_parameter:.3g}",
        f"  memory of the whole process: {memory}",
        f"  disk {byte_size(found.disk_bytes)}: {found.checkpoints_kept} checkpoints of "
        f"{byte_size(found.checkpoint_bytes)} and one being written",
        f"  time, assumed rates (bitnet cost tells more): {', '.join(times)}",
    ]
