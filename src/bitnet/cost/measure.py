"""How fast updates of a model are on this machine, measured with a few seconds of real updates.

Loss, autocast, clipping, optimizers and the choices for the device are the training loop's own. The data are
random ids, on which the time does not depend. torch.compile is left out, because compiling takes longer than
this. If model or batch are too large for the time, a part is measured: first one layer and one row, then
more, up to the largest part that fits. The whole is extrapolated in proportion to FLOPs (forward and
backward) and to parameters or Muon's FLOPs (optimizer). Small parts use a machine worse than large ones, so
such a figure is on the slow side. Unlikelihood in one stage is timed as if in both.

Not here: the time of reading data, evaluation, samples and checkpoints.
"""

from __future__ import annotations

import dataclasses
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from bitnet.allocator import keep_freed_memory
from bitnet.cost.flops import optimizer_flops
from bitnet.cost.memory import memory_of, numerics_on
from bitnet.data.stream import Batch
from bitnet.errors import ConfigError
from bitnet.nn.config import BitNetConfig
from bitnet.nn.transformer import BitNetTransformer
from bitnet.optim.optimizer import Optimizers
from bitnet.optim.update import apply_update
from bitnet.train.config import TrainConfig
from bitnet.train.device import choose_machine
from bitnet.train.loop import autocast
from bitnet.train.objective import NextToken, terms_of

SECONDS = 10.0
SHORT = 256  # tokens of the first, smallest part


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The result. whole: the entire model was measured, on a micro-batch of the run's size."""

    device: str
    layers: int
    rows: int
    seq_len: int
    whole: bool
    updates: int
    forward_backward_s: float
    """Median of one micro-batch of the measured part."""
    optimizer_s: float
    """Median of clipping and the optimizers, for the measured part."""
    update_s: float
    """One update of the run, micro-batches and optimizer; extrapolated unless whole."""
    peak_bytes: int
    """Largest resident size of this process (CPU) or of tensors on the GPU, meanwhile."""


class _Part:
    """A model of some layers with a batch of some rows, ready for updates."""

    def __init__(self, model: BitNetConfig, train: TrainConfig, device: torch.device) -> None:
        self.config, self.train, self.device = model, train, device
        self.machine = choose_machine(train, device, model=model)
        self.model = BitNetTransformer(model).to(device)
        machine = self.machine
        formats = machine.gradient_dtype, machine.input_gradient, machine.weight_dtype
        self.model.set_product(machine.product, *formats, fused=machine.fused_blocks)
        self.optimizers = Optimizers(self.model, train.optimizer_config())
        self.objective = NextToken(
            max(train.stage1_unlikelihood, train.stage2_unlikelihood), train.unlikelihood_tokens
        )
        ids = torch.randint(0, model.vocab_size, (train.batch_size, train.seq_len), device=device)
        self.batch = Batch(ids, ids, torch.ones_like(ids, dtype=torch.bool))
        self.flops = micro_batch_flops(model, train)

    def update(self) -> tuple[float, float]:
        """Seconds of forward and backward, and of the optimizer, of one real update."""
        started = time.perf_counter()
        with autocast(self.device, self.machine.bf16, self.machine.fp16):
            head = self.model.lm_head.weight if self.machine.fused_loss else None
            terms = terms_of(self.objective, self.model, self.batch, head)
            loss = terms.sum() / self.batch.input_ids.numel()
        loss.backward()  # type: ignore[no-untyped-call]
        self._wait()
        between = time.perf_counter()

        apply_update(
            self.model,
            self.optimizers,
            self.train.rates().rates_at(1),
            loss=float(loss.detach()),
            clip_norm=self.train.grad_clip_norm,
        )
        self._wait()
        return between - started, time.perf_counter() - between

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def micro_batch_flops(model: BitNetConfig, train: TrainConfig) -> float:
    """Operations of forward and backward of one micro-batch."""
    return model.flops_per_token(train.seq_len) * train.batch_size * train.seq_len


def parts(model: BitNetConfig, train: TrainConfig) -> Iterator[tuple[BitNetConfig, TrainConfig]]:
    """Ever larger parts of the run's micro-batch, the last one whole."""
    layers, rows, seq_len = model.num_layers, train.batch_size, train.seq_len
    ladder = [
        (1, 1, min(SHORT, seq_len)),
        (1, 1, seq_len),
        (layers, 1, seq_len),
        (layers, -(-rows // 8), seq_len),
        (layers, rows, seq_len),
    ]
    for some_layers, some_rows, some_tokens in dict.fromkeys(ladder):
        yield (
            dataclasses.replace(model, num_layers=some_layers),
            dataclasses.replace(train, batch_size=some_rows, seq_len=some_tokens),
        )


def measure(
    model: BitNetConfig, train: TrainConfig, device: torch.device, seconds: float | None = None
) -> Measured:
    """Time updates for some seconds (default 10). Raises ConfigError if one layer does not fit the memory."""
    keep_freed_memory()
    deadline = time.perf_counter() + (SECONDS if seconds is None else seconds)
    part: _Part | None = None
    times: list[tuple[float, float]] = []
    # As the whole run would choose, not each part.
    bf16 = choose_machine(train, device, model=model).bf16
    if train.precision == "auto":
        train = dataclasses.replace(train, precision="bf16" if bf16 else "fp32")
    for some_model, some_train in parts(model, train):
        if part is not None:
            expected = sum(times[-1]) * micro_batch_flops(some_model, some_train) / part.flops
            if time.perf_counter() + 2 * expected > deadline:
                break
        if not _fits(some_model, some_train, device):
            if part is None:
                raise ConfigError(
                    f"one layer of this model on one row does not fit the memory of {device}; leave "
                    "--measure out"
                )
            break
        part = None  # frees the smaller part first
        part = _Part(some_model, some_train, device)
        part.update()  # the first one allocates and chooses kernels
        times = [part.update()]

    assert part is not None
    while time.perf_counter() + sum(times[-1]) < deadline:
        times.append(part.update())
    return _measured(model, train, part, times)


def _measured(
    model: BitNetConfig, train: TrainConfig, part: _Part, times: list[tuple[float, float]]
) -> Measured:
    forward_backward, optimizer = (statistics.median(column) for column in zip(*times, strict=True))
    flops = model.flops_per_token(train.seq_len) * train.tokens_per_step
    update = forward_backward * flops / part.flops + optimizer * _optimizer_ratio(model, part.config, train)
    on_gpu = part.device.type == "cuda"
    return Measured(
        device=str(part.device),
        layers=part.config.num_layers,
        rows=part.train.batch_size,
        seq_len=part.train.seq_len,
        whole=(part.config, part.train) == (model, train),
        updates=len(times),
        forward_backward_s=forward_backward,
        optimizer_s=optimizer,
        update_s=update,
        peak_bytes=torch.cuda.max_memory_allocated(part.device) if on_gpu else peak_resident_bytes(),
    )


def _optimizer_ratio(model: BitNetConfig, part: BitNetConfig, train: TrainConfig) -> float:
    if train.optimizer == "muon":
        return optimizer_flops(model, train.optimizer) / optimizer_flops(part, train.optimizer)
    return model.total_params / part.total_params


def _fits(model: BitNetConfig, train: TrainConfig, device: torch.device) -> bool:
    """Whether twice the estimate is free. True where the system does not tell."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_bytes()
    numerics = numerics_on("cuda" if device.type == "cuda" else "cpu", model, train)
    return free is None or 2 * memory_of(model, train, numerics).peak < free


def available_bytes() -> int | None:
    """Memory that a new process can have, or None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, ValueError, StopIteration):
        return None


def peak_resident_bytes() -> int:
    """Largest resident size that this process ever had."""
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes on macOS, kilobytes on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
