"""Checkpoints that are whole or absent, and that say when they are damaged.

A checkpoint is a directory: model.safetensors, optimizer.safetensors, observers.safetensors, state.json, and
manifest.json with the size and SHA-256 of the others. It is written under a temporary name, synced, and
appears by one rename; the manifest is written last. Reading checks the manifest first, and then that every
number is finite: a checkpoint with a NaN or an infinity is never written and never counts as good. No pickle
is read or written. Not here: when a checkpoint is saved (train/observe/checkpoints.py).
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bitnet.errors import CheckpointError, DataError, NotFiniteError, NotFoundError
from bitnet.files import new_folder, read_json, sha256, sync, write_json
from bitnet.run.layout import RunLayout
from bitnet.run.records import read_state
from bitnet.run.tensors import (
    ArrayFile,
    check_fits_memory,
    first_not_finite,
    first_not_finite_in,
    read_tensors,
    write_tensors,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bitnet.nn.config import BitNetConfig

MODEL, OPTIMIZER, MEMORY = "model.safetensors", "optimizer.safetensors", "observers.safetensors"
STATE, MANIFEST = "state.json", "manifest.json"
Signature = tuple[str | tuple[str, int, int, int], ...]
_GOOD: set[Signature] = set()
"""Checkpoints that this process wrote or verified. Hashing gigabytes again at every pruning would take long.
"""
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")  # no path: a manifest may come from anyone
_HALF_WRITTEN = re.compile(r"\.step_\d+\.\d+(\.old)?\.tmp")


class Checkpoint(NamedTuple):
    """What a checkpoint holds. state has the seeds' keys (step, tokens_seen, rng_states, loss, ...).

    memory: what observers need to go on as if nothing had happened (the codes of the last probe).
    """

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]
    memory: dict[str, Tensor]


def save_checkpoint(layout: RunLayout, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint; an existing one of the same step is replaced only by a complete new one.

    Raises NotFiniteError, and writes nothing, where a tensor holds a NaN or an infinity.
    """
    broken = first_not_finite(checkpoint.model) or first_not_finite(checkpoint.optimizer)
    if broken is not None:
        raise NotFiniteError(
            f"no checkpoint of update {checkpoint.step} was written, because {broken} holds NaN or infinite "
            "values; earlier checkpoints are untouched, so repeat the command to resume from the newest"
        )
    final = layout.checkpoint(checkpoint.step)
    try:
        with new_folder(final) as folder:
            write_tensors(folder / MODEL, checkpoint.model)
            write_tensors(folder / OPTIMIZER, checkpoint.optimizer)
            write_tensors(folder / MEMORY, checkpoint.memory)
            write_json(folder / STATE, checkpoint.state)
            write_json(folder / MANIFEST, {"step": checkpoint.step, "files": _describe(folder)})
            sync(folder)  # before an older one of the same step is removed
            if final.exists():
                _remove(final)
        _GOOD.add(_signature(final))
    except OSError as error:
        raise CheckpointError(
            f"checkpoint {final} could not be written ({error.strerror or error}); earlier checkpoints are "
            "untouched. Free some space or choose another --runs-dir, then repeat the command to resume"
        ) from error
    return final


def load_checkpoint(folder: Path, *, optimizer: bool = True) -> Checkpoint:
    """Read a checkpoint after checking all its files. Raises CheckpointError that names what is wrong."""
    verify_checkpoint(folder)
    try:
        state = read_state(folder / STATE)
        tensors = read_tensors(folder / OPTIMIZER) if optimizer else {}
        memory = read_tensors(folder / MEMORY) if optimizer else {}
        return Checkpoint(state["step"], read_tensors(folder / MODEL), tensors, state, memory)
    except (DataError, NotFoundError) as error:
        raise CheckpointError(str(error)) from None


def load_arrays(folder: Path) -> tuple[int, ArrayFile]:
    """The step and the weights of a checkpoint, to be read one by one, for inference without torch.

    Checks only the files that it reads, and that the others have their sizes. Raises CheckpointError.
    """
    try:
        for name, (size, digest) in _manifest(folder).items():
            if name in (MODEL, STATE):
                _verify_file(folder, name, size, digest)
            elif not (folder / name).is_file() or (folder / name).stat().st_size != size:
                raise CheckpointError(f"{folder}: {name} is missing or cut short; use another checkpoint")
        return int(read_state(folder / STATE)["step"]), ArrayFile(folder / MODEL)
    except (DataError, NotFoundError) as error:
        raise CheckpointError(str(error)) from None


def check_size(config: BitNetConfig, checkpoint: Checkpoint) -> None:
    """Raise CheckpointError for a checkpoint of another number of weights, before a model is built.

    A configuration from somebody else may describe a model larger than the memory, beside a checkpoint of a
    few bytes.
    """
    found = sum(tensor.numel() for tensor in checkpoint.model.values())
    if found != config.total_params:
        raise CheckpointError(
            f"the checkpoint of step {checkpoint.step} does not fit the model: it holds {found:,} weights, "
            f"that of meta/config.json {config.total_params:,}; use the run's own checkpoint and "
            "configuration"
        )


def load_weights(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Copy a checkpoint's weights into a model. Raises CheckpointError for one of another configuration."""
    import torch

    own, stored = dict(model.named_parameters()), checkpoint.model
    odd = sorted(own.keys() ^ stored.keys())
    odd += sorted(name for name in own.keys() & stored.keys() if not _fits(own[name], stored[name]))
    if odd:
        raise CheckpointError(
            f"the checkpoint of step {checkpoint.step} does not fit the model: {odd[0]} differs; use the "
            "run's own checkpoint"
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(stored[name])


def _fits(own: Tensor, stored: Tensor) -> bool:
    """Whether a stored weight is one for this parameter: its shape, and real numbers."""
    return own.shape == stored.shape and stored.is_floating_point()


def verify_checkpoint(folder: Path) -> None:
    """Raise CheckpointError unless every file is the recorded one, and every number is finite."""
    try:
        for name, (size, digest) in _manifest(folder).items():
            _verify_file(folder, name, size, digest)
        for name in (MODEL, OPTIMIZER):
            broken = first_not_finite_in(folder / name)
            if broken is not None:
                raise CheckpointError(
                    f"{folder}: {broken} in {name} holds NaN or infinite values; use an earlier checkpoint"
                )
    except DataError as error:
        raise CheckpointError(str(error)) from None


def _manifest(folder: Path) -> dict[str, tuple[int, str]]:
    """The size in bytes and the SHA-256 of each file of a checkpoint. Raises CheckpointError."""
    try:
        files = read_json(folder / MANIFEST)["files"]
        expected = {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in files.items()}
    except (LookupError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise CheckpointError(
            f"{folder}: {MANIFEST} is missing or damaged ({type(error).__name__}); use another checkpoint"
        ) from None
    missing = {MODEL, OPTIMIZER, MEMORY, STATE} - expected.keys()
    if missing:
        raise CheckpointError(
            f"{folder}: the manifest does not list {', '.join(sorted(missing))}; use another checkpoint"
        )
    odd = sorted(name for name in expected if not _FILE_NAME.fullmatch(name))
    if odd:
        raise CheckpointError(
            f"{folder}: the manifest names {odd[0][:80]!r}, which is no file of a checkpoint; use another "
            "checkpoint"
        )
    return expected


def _verify_file(folder: Path, name: str, size: int, digest: str) -> None:
    """Raise CheckpointError, or DataError, unless a file has this size and SHA-256."""
    path = folder / name
    if not path.is_file():
        raise CheckpointError(f"{folder}: {name} is missing; use another checkpoint")
    if path.stat().st_size != size:
        raise CheckpointError(
            f"{folder}: {name} has {path.stat().st_size} bytes, the manifest says {size}; use another "
            "checkpoint"
        )
    check_fits_memory(
        path
    )  # before it is hashed: a file of a terabyte on paper costs whoever sent it nothing
    if sha256(path) != digest:
        raise CheckpointError(
            f"{folder}: {name} does not match its SHA-256 in the manifest; use another checkpoint"
        )


def is_good(folder: Path) -> bool:
    """Whether a checkpoint verifies. It is not hashed again while its files are the same."""
    try:
        signature = _signature(folder)
        if signature not in _GOOD:
            verify_checkpoint(folder)
            _GOOD.add(signature)
    except (CheckpointError, OSError):
        return False
    return True


def _signature(folder: Path) -> Signature:
    """Names, sizes and times of a checkpoint's files: another one for any file that was written to."""
    stats = ((path.name, path.stat()) for path in sorted(folder.iterdir()))
    return (
        str(folder.resolve()),
        *((name, stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in stats),
    )


def newest_good(
    layout: RunLayout, report: Callable[[str], None], *, optimizer: bool = True
) -> Checkpoint | None:
    """The newest checkpoint that verifies, or None. `report` is called with what is wrong with each newer
    one.
    """
    for step in reversed(layout.checkpoint_steps()):
        try:
            return load_checkpoint(layout.checkpoint(step), optimizer=optimizer)
        except CheckpointError as error:
            report(str(error))
    return None


def retained_steps(
    steps: Iterable[int], *, mandatory: Iterable[int], keep_last: int, keep_every: int
) -> set[int]:
    """Which checkpoints stay: the last few (one at least), one at every so many steps, the mandatory ones."""
    ordered = sorted(steps)
    recent = ordered[-max(keep_last, 1) :]
    return {
        *recent,
        *(s for s in ordered if s % keep_every == 0),
        *(s for s in ordered if s in set(mandatory)),
    }


def prune(
    layout: RunLayout, *, mandatory: Iterable[int], keep_last: int, keep_every: int, named: Iterable[int] = ()
) -> None:
    """Delete checkpoints that retention does not keep, and what a killed process left half-written.

    Damaged checkpoints do not count among the last few. The newest good one always stays, and so do damaged
    ones after it, which the run will replace. named: steps that a message to the user has named, which stay.
    """
    steps = layout.checkpoint_steps()
    good = (step for step in reversed(steps) if is_good(layout.checkpoint(step)))
    recent = list(islice(good, max(keep_last, 1)))
    if recent:
        old = [step for step in steps if step < recent[0]]
        kept = {*recent, *named, *(step for step in old if step % keep_every == 0), *mandatory}
        for step in set(old) - kept:
            _remove(layout.checkpoint(step))

    for path in layout.checkpoints.glob(".step_*.tmp"):
        if _HALF_WRITTEN.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def _remove(folder: Path) -> None:
    """Delete a checkpoint. It is renamed first, so that a kill on the way leaves no damaged one behind."""
    doomed = folder.with_name(f".{folder.name}.{os.getpid()}.old.tmp")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _describe(folder: Path) -> dict[str, dict[str, Any]]:
    """The manifest's entries for the files of a folder."""
    return {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in sorted(folder.iterdir())
    }
