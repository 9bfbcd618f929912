"""`bitnet cost NAME|SHAPE`: what a run will take before it starts; with --measure, from updates on this
machine.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bitnet.bounds import MOST_TOKENS, within
from bitnet.cli.flags import JsonFlags, last_value, parse, with_sections
from bitnet.cli.registry import experiment_names, find_experiment, find_variant
from bitnet.errors import ConfigError, NotFoundError, did_you_mean

if TYPE_CHECKING:
    from bitnet.cost.measure import Measured
    from bitnet.nn.config import BitNetConfig
    from bitnet.train.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class CostFlags(JsonFlags):
    """Estimate what a run will take before it starts: parameters, memory, disk, time, money."""

    variant: str | None = None
    """Variant of an experiment; by default the full-size one that `bitnet train` takes on a GPU."""
    tokens: float | None = None
    """Tokens to train on, as in 2e9; by default the experiment's, or 20 for each parameter of a shape."""
    tokens_per_parameter: float | None = None
    """The same as a multiple of the parameters."""
    batch_size: int | None = None
    """Rows per micro-batch."""
    seq_len: int | None = None
    """Tokens per row; by default the experiment's, or the max_seq_length of a shape."""
    weights: Literal["ternary", "full"] | None = None
    """full: the control, with ordinary weights and unquantised activations."""
    devices: Path | None = None
    """Table of devices, rates and prices (TOML); by default the one whose path is printed."""
    measure: bool = False
    """Time real updates on this machine for about 10 seconds."""
    device: str = "auto"
    """What --measure runs on: auto, cpu or cuda."""


@dataclass(frozen=True)
class Base:
    """What a name stands for before flags. model: None where flags must give it; own_tokens: the budget is
    the experiment's.
    """

    name: str
    model: BitNetConfig | None
    train: TrainConfig
    own_tokens: bool


SHAPE = "shape"  # the word, which may be left out, for a model that flags alone describe
# A shape has no recipe. Micro-batches of 8 rows; from 10^9 parameters on gathered to 2^20 tokens an update,
# the batch that the authors give for 1.3B and 3B (BitNet b1.58 training tips, table of model configurations).
ROWS = 8
LARGE, LARGE_UPDATE = 10**9, 1 << 20


def main(arguments: Sequence[str]) -> int:
    """Print the estimate; nothing is written."""
    name, flags, model, train = resolve(arguments)
    from bitnet.cost.devices import TABLE, load_devices
    from bitnet.cost.estimate import estimate
    from bitnet.cost.page import page

    table = flags.devices or TABLE
    found = estimate(model, train, load_devices(table))
    measured = _measure(model, train, flags.device) if flags.measure else None
    if flags.json:
        timed = (
            None
            if measured is None
            else {**dataclasses.asdict(measured), "seconds": measured.update_s * train.total_steps}
        )
        config = {"model": dataclasses.asdict(model), "training": dataclasses.asdict(train)}
        print(json.dumps({"name": name, **found.to_json(), "measured": timed, **config}))
        return 0
    print("\n".join(page(name, found, train, measured)))
    print(f"\nrates and prices are from {table}; copy it, put your own in, and give it with --devices")
    return 0


def _measure(model: BitNetConfig, train: TrainConfig, device: str) -> Measured:
    from bitnet.cost.measure import measure
    from bitnet.train.device import choose_device

    return measure(model, train, choose_device(device))


def resolve(arguments: Sequence[str]) -> tuple[str, Any, BitNetConfig, TrainConfig]:
    """Name, flags, model and training settings, with every override applied and checked."""
    words = list(arguments)
    named = bool(words) and not words[0].startswith("-")
    word, rest = (words[0], words[1:]) if named else (SHAPE, words)
    if not words:
        raise NotFoundError(
            "name an experiment or a shape first, as in: bitnet cost arithmetic, or: bitnet cost 1B"
        )
    base = find_base(word, rest)
    flags: Any = parse(_flags_type(base), rest, f"cost {word}")
    if flags.variant is not None and not base.own_tokens:
        raise ConfigError(
            f"--variant is {flags.variant}, but {base.name} has no variants; leave it out, or name an "
            "experiment"
        )
    return base.name, flags, *_applied(flags, base)


def find_base(word: str, rest: Sequence[str]) -> Base:
    """The experiment's variant, or the shape, of this name."""
    from bitnet.cost.presets import PRESETS
    from bitnet.experiments.shapes import SHAPES

    if word.endswith(".py") or word in experiment_names():
        experiment = find_experiment(word)
        variant = last_value(rest, "--variant") or experiment.gpu_variant
        config = find_variant(experiment, variant).config
        return Base(f"{experiment.name} ({variant})", config.model, config.train, own_tokens=True)
    shapes = {**SHAPES, **PRESETS}
    if word == SHAPE:
        return Base("this shape", None, train_of_shape(None, rest), own_tokens=False)
    word = word.upper() if word.upper() in PRESETS else word
    if word not in shapes:
        known = {*experiment_names(), *shapes, SHAPE}
        raise NotFoundError(
            f"there is no experiment or shape {word!r}.{did_you_mean(word, known)} See: bitnet cost --help"
        )
    return Base(f"{word} (shape)", shapes[word], train_of_shape(shapes[word], rest), own_tokens=False)


def train_of_shape(model: BitNetConfig | None, rest: Sequence[str]) -> TrainConfig:
    """Training settings of a shape: full rows, so many of them, one update until the tokens are known."""
    from bitnet.train.config import TrainConfig

    given = last_value(rest, "--model.max-seq-length") or ""
    seq_len = (
        int(given) if given.isdecimal() and int(given) else model.max_seq_length if model is not None else 1
    )
    large = model is not None and model.total_params >= LARGE
    accumulation = max(LARGE_UPDATE // (ROWS * seq_len), 1) if large else 1
    return TrainConfig(seq_len=seq_len, batch_size=ROWS, grad_accumulation_steps=accumulation, total_steps=1)


def _flags_type(base: Base) -> type[CostFlags]:
    """CostFlags with a dotted group of flags for the model, required where nothing gives it, and for
    training.
    """
    from bitnet.nn.config import BitNetConfig

    return with_sections(CostFlags, model=base.model or BitNetConfig, train=base.train)


def _applied(flags: Any, base: Base) -> tuple[BitNetConfig, TrainConfig]:
    """The short flags on top of the dotted ones, and the number of updates that the tokens ask for."""
    from bitnet.cost.estimate import CHINCHILLA, with_tokens
    from bitnet.train.config import RunConfig
    from bitnet.train.data_config import DataConfig

    model: BitNetConfig = flags.model
    train: TrainConfig = flags.train
    if flags.weights is not None:
        model = model.with_weights(flags.weights)
    short = {
        name: getattr(flags, name) for name in ("batch_size", "seq_len") if getattr(flags, name) is not None
    }
    train = dataclasses.replace(train, **short)
    RunConfig(model=model, train=train, data=DataConfig(dataset=""))  # its check of both together
    if flags.tokens is not None and flags.tokens_per_parameter is not None:
        raise ConfigError(
            "--tokens and --tokens-per-parameter are two ways to say the same; give one of them"
        )
    within("--tokens", flags.tokens, 1.0, float(MOST_TOKENS))
    within("--tokens-per-parameter", flags.tokens_per_parameter, 1e-9, 1e9)
    ratio = flags.tokens_per_parameter
    if ratio is None and not base.own_tokens and train.total_steps == base.train.total_steps:
        ratio = CHINCHILLA
    if flags.tokens is None and ratio is None:
        return model, train
    return model, with_tokens(train, ratio * model.total_params if flags.tokens is None else flags.tokens)
