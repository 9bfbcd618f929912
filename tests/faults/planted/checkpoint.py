"""Faults of saving, loading, resuming and of the files of a run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

import bitnet.trained_model as trained
from bitnet.optim.optimizer import Optimizers
from bitnet.run import checkpoint
from bitnet.run.checkpoint import load_checkpoint, save_checkpoint
from bitnet.run.layout import RunLayout
from bitnet.train import resume, start
from bitnet.train.config import TrainConfig
from bitnet.train.observe import checkpoints
from bitnet.train.observe.measurements import Probe
from planted.fault import fault, on_run
from planted.runs import small_run


@fault("checkpoints in bf16", "checkpoint", "resumed run")
def _() -> None:
    original = checkpoints.save_checkpoint

    def coarse(layout: Any, checkpoint: Any) -> Any:
        return original(
            layout,
            checkpoint._replace(
                model={k: v.detach().bfloat16().float() for k, v in checkpoint.model.items()}
            ),
        )

    checkpoints.save_checkpoint = coarse


@fault("optimizer state not restored", "checkpoint", "resumed run")
def _() -> None:
    Optimizers.load_state_tensors = lambda self, tensors: None  # type: ignore[method-assign]


@on_run("a flipped bit in every checkpoint", "checkpoint", "whole")
def _(folder: Path) -> list[str]:
    words = small_run(folder)
    for path in (folder / "runs" / "one" / "checkpoints").glob("*/model.safetensors"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 16
        path.write_bytes(content)
    return words


@on_run("a checkpoint with other weights", "checkpoint", "recorded loss")
def _(folder: Path) -> list[str]:
    words = small_run(folder)
    layout = RunLayout(folder / "runs" / "one")
    first, last = (load_checkpoint(layout.checkpoint(step)) for step in (0, 60))
    save_checkpoint(layout, last._replace(model=first.model))
    return words


@fault("random states not restored", "checkpoint", "random states")
def _() -> None:
    resume.restore_random_states = lambda states: None


@fault("tokens of the update before in the state", "checkpoint", "state")
def _() -> None:
    original = checkpoints.training_state
    checkpoints.training_state = lambda config, step, seen, loss: original(
        config, step, max(seen - config.tokens_per_step, 0), loss
    )


@fault("probes forget the codes before a resume", "checkpoint", "same lines")
def _() -> None:
    Probe.remember = lambda self, memory: None  # type: ignore[method-assign]


@fault("the stage boundary is not kept", "checkpoint", "promised")
def _() -> None:
    TrainConfig.mandatory_checkpoints = lambda self: frozenset({0, self.total_steps})  # type: ignore[method-assign]


@fault("damage is not noticed", "checkpoint", "damaged")
def _() -> None:
    checkpoint.verify_checkpoint = lambda folder: None


@fault("fine-tuning begins with random weights", "checkpoint", "begun from")
def _() -> None:
    original = start.begin

    def begin(session: Any, described: Any) -> Any:
        kept = {name: weight.detach().clone() for name, weight in session.model.named_parameters()}
        first = original(session, described)
        with torch.no_grad():
            for name, weight in session.model.named_parameters():
                weight.copy_(kept[name])
        return first

    start.begin = begin


@fault("the oldest checkpoint is loaded", "checkpoint", "loads")
def _() -> None:
    original = trained.read_checkpoint

    def oldest(reference: Any, notes: Any, *words: Any) -> Any:
        return original(
            dataclasses.replace(reference, step=reference.layout.checkpoint_steps()[0]), notes, *words
        )

    trained.read_checkpoint = oldest


@fault("a loaded head that came apart", "checkpoint", "user loads")
def _() -> None:
    original = trained.load_weights

    def load(model: Any, checkpoint: Any) -> None:
        original(model, checkpoint)
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() * 1.01)

    trained.load_weights = load


@on_run("a run whose start was replaced", "checkpoint", "weights of its seed")
def _(folder: Path) -> list[str]:
    words = small_run(folder)
    layout = RunLayout(folder / "runs" / "one")
    first = load_checkpoint(layout.checkpoint(0))
    save_checkpoint(
        layout, first._replace(model={name: weight.flip(0) for name, weight in first.model.items()})
    )
    return words
