"""The estimate of `bitnet cost` as text for a terminal. Sizes are decimal: 1 MB is 10^6 bytes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from bitnet.units import byte_size, duration, scaled

if TYPE_CHECKING:
    from bitnet.cost.estimate import Estimate, Fit, OnDevice
    from bitnet.cost.measure import Measured
    from bitnet.train.config import TrainConfig

MEMORY_ROWS = {
    "weights": "weights",
    "optimizer": "optimizer state",
    "ternary_codes": "ternary codes and their copies",
    "gradients": "gradients",
    "activations": "kept for the backward pass",
    "backward_work": "worked with in the backward pass",
    "update_work": "worked with in the update",
    "peak": "tensors at the peak",
}


def page(name: str, found: Estimate, train: TrainConfig, measured: Measured | None) -> list[str]:
    """All sections."""
    muon, each = found.optimizer_flops_per_update, byte_size(found.checkpoint_bytes)
    return [
        f"{name}: {found.parameters:,} parameters, {found.ternary_parameters:,} of them ternary",
        "  " + "  ".join(f"{part} {count:,}" for part, count in found.breakdown.items()),
        f"tokens   {found.tokens:,} in {found.updates:,} updates of {found.tokens_per_update:,}: "
        f"{found.tokens_per_parameter:.3g} for each parameter; 20 would be {found.tokens_at_20:,}",
        f"compute  {scaled(found.flops_per_token)}FLOP for each token, {scaled(found.flops)}FLOP in all"
        + (f", with Muon's {scaled(muon)}FLOP an update" if muon else ""),
        f"packed   {byte_size(found.packed_bytes)}: "
        f"{'2 bits a ternary weight, the rest' if found.ternary_parameters else 'all'} in float32; "
        f"in bf16 {byte_size(found.packed_bf16_bytes)}",
        f"disk     {byte_size(found.disk_bytes)}: {found.checkpoints_kept} checkpoints that stay, one being "
        f"written, {each} each",
        "",
        *_memory(found, train),
        "",
        *_devices(found),
        *(() if measured is None else ("", *_measured(measured, found))),
    ]


def _memory(found: Estimate, train: TrainConfig) -> Iterator[str]:
    several = f" (1 of {train.grad_accumulation_steps})" if train.grad_accumulation_steps > 1 else ""
    yield f"{f'memory, micro-batch {train.batch_size} x {train.seq_len}{several}':<44}{'GPU':>12}{'CPU':>12}"
    for field, label in MEMORY_ROWS.items():
        yield f"  {label:<42}" + "".join(
            f"{byte_size(getattr(found.memory[kind], field)):>12}" for kind in ("cuda", "cpu")
        )
    yield f"  {'whole process, allocator included':<42}" + "".join(
        f"{byte_size(found.process_bytes[kind]):>12}" for kind in ("cuda", "cpu")
    )
    yield "  fits on a card of  " + "   ".join(f"{fit.gb:g} GB: {fits(fit)}" for fit in found.fits)


def fits(fit: Fit) -> str:
    """Whether the run fits, and how many rows a micro-batch may have."""
    if not fit.largest_batch:
        return "no"
    rows = f"{fit.largest_batch:,} row{'s' if fit.largest_batch > 1 else ''}"
    return f"yes, up to {rows}" if fit.fits else f"no, at most {rows}"


def _devices(found: Estimate) -> Iterator[str]:
    yield f"{'time and money':<26}{'TFLOP/s':>9}  {'':<10}{'tokens/s':>12}{'time':>13}{'USD':>12}"
    for row in found.devices:
        yield _device(row, found)


def _device(row: OnDevice, found: Estimate) -> str:
    rate = f"{row.device.flops_per_second / 1e12:.3g}"
    start = f"  {row.device.name:<24}{rate:>9}  {'measured' if row.device.measured else 'assumed':<10}"
    if row.fit is not None and not row.fit.largest_batch:
        return start + "  does not fit, not even one row"
    money = "-" if row.usd is None else f"{row.usd:,.2f}" if row.usd >= 0.01 else "< 0.01"
    note = "" if row.fit is None or row.fit.fits else f"  in micro-batches of {row.fit.largest_batch}"
    return f"{start}{found.tokens / row.seconds:>12,.0f}{duration(row.seconds):>13}{money:>12}{note}"


def _measured(measured: Measured, found: Estimate) -> Iterator[str]:
    seconds = measured.update_s * found.updates
    yield (
        f"measured now on this machine ({measured.device}): {duration(seconds)} at {measured.update_s:.3g} "
        f"s an update, {found.tokens_per_update / measured.update_s:,.0f} tokens/s, "
        f"{scaled(found.flops / seconds)}FLOP/s"
    )
    layers = f"{measured.layers} layer{'s' if measured.layers > 1 else ''}"
    part = f"{layers}, {measured.rows} x {measured.seq_len} tokens"
    scope = "the whole micro-batch" if measured.whole else "EXTRAPOLATED from this part"
    yield (
        f"  from {measured.updates} updates of {part}: {scope}; meanwhile it held up to "
        f"{byte_size(measured.peak_bytes)}"
    )
