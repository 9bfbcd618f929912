"""`bitnet train NAME|FILE.py`: resolve the configuration, say what will be trained, train."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import tyro

from bitnet.cli.flags import RunFlags, last_value, parse, with_sections
from bitnet.cli.registry import experiment_names, find_experiment, find_variant
from bitnet.cli.start_from import started_from
from bitnet.errors import ConfigError, NotFoundError

if TYPE_CHECKING:
    from bitnet.run.layout import RunLayout
    from bitnet.train.config import RunConfig, TrainConfig
    from bitnet.train.data_config import DataConfig, ShortFlag
    from bitnet.train.experiment import Experiment
    from bitnet.train.start import Ended


@dataclass(frozen=True, kw_only=True)
class TrainFlags(RunFlags):
    """Train an experiment, or continue a run."""

    variant: str | None = None
    """Which variant; by default the experiment's own choice for the device."""
    run_id: str | None = None
    """Name of the run; by default made from the experiment and the time."""
    num_steps: int | None = None
    """Optimizer updates; moves the stage boundary to half and limits the warm-up to a tenth."""
    batch_size: int | None = None
    """Rows per micro-batch."""
    seq_len: int | None = None
    """Tokens per row."""
    seed: int | None = None
    """Seed of weights and data order."""
    device: str = "auto"
    """auto, cpu or cuda."""
    weights: Literal["ternary", "full"] | None = None
    """full: the control, with ordinary weights and unquantised activations."""
    control: bool = False
    """Train twice: as asked for, then the same with full-precision weights under ID_control."""
    resume: Literal["auto", "never", "must"] = "auto"
    """auto continues a run of the same id or configuration, never begins anew, must fails without one."""
    mirror: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Also show the metrics there; each needs its extra."""
    start_from: Annotated[str | None, tyro.conf.arg(name="from")] = None
    """Begin with the model, tokenizer and weights of this run."""
    evaluate: bool = False
    """Judge the run when it is done, as `bitnet evaluate RUN --once` does."""
    check: bool = False
    """The same, with exit code 1 unless every criterion is met."""
    experiment: Path | None = None
    """With --from a run of your own experiment: its file; what only the run names is not executed."""
    trust: bool = False
    """With --from a run of somebody else: read what it names outside its folder."""
    dry_run: bool = False
    """Print the resolved configuration and write nothing."""


def main(arguments: Sequence[str]) -> int:
    """Train, and with --control train again in full precision. Returns 0 when done, 128 + the signal when a
    signal stopped it.
    """
    from bitnet.cost.outlook import outlook, refuse_beyond_memory
    from bitnet.train.device import choose_device, refuse_several_processes

    experiment, name, flags, config = resolve(arguments)
    refuse_several_processes(os.environ)
    device_type = choose_device(flags.device).type
    say = functools.partial(print, file=sys.stderr if flags.json else sys.stdout, flush=True)
    if flags.variant is None:
        others = ", ".join(other for other in experiment.variants if other != name)
        say(f"variant {name}, the one for a {device_type}; with --variant there are also: {others}")
    say(summary(experiment, name, config))
    control = control_config(config) if flags.control else None

    if flags.dry_run:
        say("\n".join(outlook(config)))
        resolved = {"experiment": experiment.name, "variant": name, **config.to_json()}
        print(json.dumps(resolved, indent=None if flags.json else 2))
        return 0

    config = dataclasses.replace(config, data=config.data.settled(say))
    refuse_beyond_memory(config, device_type)
    make_data_ready(experiment, config, say)
    ended = [_train(experiment, name, config, flags, flags.run_id, say)]
    if control is not None and ended[0].signal is None:
        say(f"the control: {summary(experiment, name, control)}")
        ended.append(_train(experiment, name, control, flags, f"{ended[0].layout.run_id}_control", say))
        if ended[1].state != "stopped":
            say(f"next: bitnet compare {ended[0].layout.root} {ended[1].layout.root}")

    if flags.json:
        print(json.dumps(_result(*ended)))
    if ended[-1].signal is not None:
        return 128 + ended[-1].signal
    if not (flags.evaluate or flags.check):
        return 0
    return max(_evaluated(one.layout, experiment, flags) for one in ended)


def _result(ended: Ended, control: Ended | None = None) -> dict[str, Any]:
    """What --json prints."""
    result: dict[str, Any] = {"run": ended.layout.run_id, "state": ended.state, "step": ended.step}
    return result if control is None else {**result, "control": _result(control)}


def _evaluated(layout: RunLayout, experiment: Experiment, flags: TrainFlags) -> int:
    """The exit code of `bitnet evaluate` for a run of this command, whether or not it is the newest."""
    from bitnet.cli import evaluate

    switches = [*(["--check"] if flags.check else []), *(["--json"] if flags.json else [])]
    if experiment.file is not None:
        switches += ["--experiment", experiment.file]
    return evaluate.main(
        [str(layout.root), "--once", "--device", flags.device, "--runs-dir", str(flags.runs_dir), *switches]
    )


def _train(
    experiment: Experiment,
    name: str,
    config: RunConfig,
    flags: TrainFlags,
    run_id: str | None,
    say: Callable[[str], None],
) -> Ended:
    """One run, from its beginning or from where it was."""
    from bitnet.train.device import choose_device
    from bitnet.train.session import StartOptions
    from bitnet.train.start import run_experiment

    options = StartOptions(
        runs_dir=flags.runs_dir,
        run_id=run_id,
        resume=flags.resume,
        device=choose_device(flags.device),
        reserved_ids=frozenset(experiment_names()),
        progress_to_stderr=flags.json,
        trackers=flags.mirror,
    )
    ended = run_experiment(experiment, name, config, options, say)
    words = {"done": "done", "already_done": "already done", "stopped": "stopped; the same command continues"}
    say(f"{ended.layout.run_id}: {words[ended.state]} at step {ended.step}")
    if ended.state != "stopped":
        say(f"next: bitnet evaluate {ended.layout.root}")
    return ended


def control_config(config: RunConfig) -> RunConfig:
    """The control of a run: full-precision weights, unquantised inputs. Raises ConfigError for a control."""
    if config.model.weights == "full":
        raise ConfigError(
            "--control compares with full-precision weights, but this run has them already; leave out "
            "--weights full"
        )
    train = dataclasses.replace(config.train, input_gradient="auto", weight_gradient="auto")
    if train.product != "float":  # the others need codes
        train = dataclasses.replace(train, product="auto")
    return dataclasses.replace(config, model=config.model.with_weights("full"), train=train)


def resolve(arguments: Sequence[str]) -> tuple[Experiment, str, TrainFlags, RunConfig]:
    """Experiment, variant name, flags, and the configuration with every override applied and checked."""
    if not arguments or arguments[0].startswith("-"):
        if {"-h", "--help"} & set(arguments):
            arguments = ["arithmetic", "--help"]
        else:
            raise NotFoundError(
                "name an experiment first, as in: bitnet train arithmetic. See: bitnet experiments"
            )
    from bitnet.train.device import choose_device

    experiment = find_experiment(arguments[0])
    rest = list(arguments[1:])
    name = last_value(rest, "--variant") or experiment.default_variant(
        choose_device(last_value(rest, "--device") or "auto").type
    )
    base = find_variant(experiment, name).config
    origin = last_value(rest, "--from")
    if origin is not None:
        runs_dir = Path(last_value(rest, "--runs-dir") or "runs")
        file = last_value(rest, "--experiment") or experiment.file
        base = started_from(
            base, origin, runs_dir, None if file is None else Path(file), trust="--trust" in rest
        )
    flags: Any = parse(_flags_type(base), rest, f"train {arguments[0]}")
    return experiment, name, flags, apply_flags(flags)


def _flags_type(base: RunConfig) -> type[TrainFlags]:
    """TrainFlags, the short flags of the data settings, and one dotted group of flags for each section."""
    short = [
        (_attribute(flag), Annotated[kind, tyro.conf.arg(name=flag.name, help=flag.about)], default)
        for flag, kind, default in _short_flags(type(base.data))
    ]
    flags = dataclasses.make_dataclass("TrainFlags", short, bases=(TrainFlags,), frozen=True, kw_only=True)
    flags.__doc__ = TrainFlags.__doc__
    return with_sections(flags, model=base.model, train=base.train, data=base.data)


def _short_flags(data: type[DataConfig]) -> Iterator[tuple[ShortFlag, Any, Any]]:
    """Each short flag with its type and its default: off for a switch, None for what was not given."""
    types = get_type_hints(data)
    for flag in data.short_flags:
        kind = types[flag.field]
        yield (flag, bool, False) if kind is bool else (flag, kind | None, None)


def _attribute(flag: ShortFlag) -> str:
    """Where the parsed flags hold a short flag; `data` itself is the section."""
    return f"short_{flag.field}"


def apply_flags(flags: Any) -> RunConfig:
    """The short flags on top of the dotted ones; what fits together is checked at the end."""
    from bitnet.train.config import RunConfig

    train, model, data = flags.train, flags.model, flags.data
    short = {name: getattr(flags, name) for name in ("batch_size", "seq_len", "seed")}
    train = dataclasses.replace(train, **{name: value for name, value in short.items() if value is not None})
    if flags.num_steps is not None:
        train = train.with_total_steps(flags.num_steps)
    if flags.weights is not None:
        model = model.with_weights(flags.weights)
    if "full" in (model.weights, model.activations):
        _refuse_products_on_codes(train)

    given = {flag.field: getattr(flags, _attribute(flag)) for flag in data.short_flags}
    data = data.with_flags({name: value for name, value in given.items() if value not in (None, False)})
    return RunConfig(train=train, model=model, data=data)


def _refuse_products_on_codes(train: TrainConfig) -> None:
    """Raise ConfigError for settings that need ternary weights and int8 activations."""
    for name, plain in (("product", "float"), ("input_gradient", "float"), ("weight_gradient", "auto")):
        value = getattr(train, name)
        if value not in ("auto", plain):
            raise ConfigError(
                f"train.{name} is {value} but the model is not ternary with int8 activations; use {plain}, "
                "or leave it out"
            )


def make_data_ready(experiment: Experiment, config: RunConfig, say: Callable[[str], None]) -> None:
    """What an experiment has to make before it can train, shown while it is made."""
    from bitnet.cli.prepare import progress_line
    from bitnet.train.experiment import Watch

    if experiment.ready is not None:
        experiment.ready(config, Watch(say, progress_line(), sys.stderr.isatty()))


def summary(experiment: Experiment, variant: str, config: RunConfig) -> str:
    """What will be trained, with the parameter breakdown."""
    model, train = config.model, config.train
    parts = "  ".join(f"{part} {count:,}" for part, count in model.parameter_breakdown().items())
    return (
        f"{experiment.name} ({variant}): {model.total_params:,} parameters, weights {model.weights}, "
        f"activations {model.activations}\n"
        f"  {parts}\n"
        f"  {train.total_steps:,} updates of {train.batch_size * train.grad_accumulation_steps} x "
        f"{train.seq_len} tokens"
        f" = {train.total_tokens:,} tokens, {train.optimizer}"
    )
