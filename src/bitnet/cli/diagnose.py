"""`bitnet diagnose NAME|RUN`: which part is broken? The decision tree on a fresh model of an experiment, or
on a run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from bitnet.cli.flags import RunFlags, parse
from bitnet.cli.foreign import refuse_foreign_places
from bitnet.cli.registry import config_of_run, experiment_names, find_variant
from bitnet.cli.rehearsal import rehearse
from bitnet.errors import NotFoundError
from bitnet.terminal import send

if TYPE_CHECKING:
    from bitnet.diagnose.finding import Check
    from bitnet.diagnose.subject import Subject
    from bitnet.nn.transformer import BitNetTransformer
    from bitnet.run.checkpoint import Checkpoint
    from bitnet.run.layout import RunLayout
    from bitnet.train.config import RunConfig, TrainConfig
    from bitnet.train.experiment import Experiment

ONE_THREAD = 5_000_000
"""Parameters up to which one thread examines faster than two: nearly all checks are small (docs/log.md)."""


@dataclass(frozen=True, kw_only=True)
class DiagnoseFlags(RunFlags):
    """Flags of `bitnet diagnose`. With an experiment's name, those of `bitnet train` that change its
    configuration too.
    """

    name: Positional[str]
    """An experiment (a fresh model of it is examined), or a run: id, directory, checkpoint, or latest."""
    variant: str | None = None
    """Which variant of the experiment."""
    full: bool = False
    """Also the slow checks: one batch learned to near zero, and the control with full-precision weights."""
    device: str = "auto"
    """auto, cpu or cuda."""
    experiment: Path | None = None
    """The file of the run's experiment, where it is your own: a file that only the run names is never
    executed."""
    trust: bool = False
    """Read and write what a run of somebody else names outside its folder."""


def main(arguments: Sequence[str]) -> int:
    """Print the page; 0 where nothing is suspected, 1 where a part is."""
    full, words = "--full" in arguments, [word for word in arguments if word != "--full"]
    named = experiment_word(words)
    subject = (
        of_experiment(named, [word for word in words if word != named], full)
        if named
        else of_run(parse(DiagnoseFlags, arguments, "diagnose"))
    )
    from bitnet.diagnose.page import page
    from bitnet.diagnose.verdict import judge
    from bitnet.files import finite, write_json

    in_json = "--json" in arguments
    with threads_for(subject):
        rows, checks = shown_rows(subject), examined(subject)
    verdict = judge(checks, unfinished(subject))
    print(page(subject.name, checks, verdict, rows), file=sys.stderr if in_json else sys.stdout)
    facts = {"name": subject.name, "step": subject.step, "rows": rows, **verdict.to_json()}
    result = finite({**facts, "checks": [check.to_json() for check in checks]})
    if subject.layout is not None:
        with contextlib.suppress(OSError):  # a run that may only be read can be diagnosed all the same
            write_json(subject.layout.diagnosis, result)
    if in_json:
        print(json.dumps(result))
    return 0 if verdict.healthy else 2 if verdict.suspect == "none" else 1


def examined(subject: Subject) -> list[Check]:
    """All checks, with their number shown while they are made."""
    from bitnet.diagnose.run_checks import examine

    checks: list[Check] = []
    for check in examine(subject):
        checks.append(check)
        if sys.stderr.isatty():
            send(sys.stderr, "\r")
            print(f"{len(checks)} checks, last: {check.name[:60]:<60}", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        send(sys.stderr, "\r" + " " * 90 + "\r")
    return checks


@contextlib.contextmanager
def threads_for(subject: Subject) -> Iterator[None]:
    """One thread for a small model on a CPU, inside the block only."""
    import torch

    before = torch.get_num_threads()
    if subject.device.type == "cpu" and subject.config.total_params <= ONE_THREAD:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def shown_rows(subject: Subject) -> list[str]:
    """A few rows as text; none where they cannot be read, which the checks then say."""
    from bitnet.diagnose.decoded import decoded_rows

    try:
        return decoded_rows(subject)
    except Exception as error:  # noqa: BLE001 - whatever a broken part raises is found again by the checks
        return [f"cannot be shown: {type(error).__name__}: {error}"]


def unfinished(subject: Subject) -> str | None:
    """What a run has still to do, in words: updates of its own plan, or tokens of its variant's; None for
    what has ended.
    """
    if subject.layout is None:
        return None
    total = int(subject.training["total_steps"])
    if subject.step < total:
        return f"{subject.step:,} of {total:,} updates"
    tokens = int(subject.training["total_tokens"])
    if subject.planned_tokens and tokens < subject.planned_tokens / 2:
        return f"{tokens:,} of the {subject.planned_tokens:,} tokens that its variant plans"
    return None


def experiment_word(words: Sequence[str]) -> str | None:
    """The experiment that is meant, if one is: its name or its file, not the value of a flag."""
    names = experiment_names()
    for before, word in zip(["", *words], words, strict=False):
        is_value = before.startswith("--") and "=" not in before and before != "--json"
        if not is_value and (word in names or word.endswith(".py")):
            return word
    return None


def of_experiment(name: str, flags: Sequence[str], full: bool) -> Subject:
    """A fresh model of an experiment and its data."""
    from bitnet.cli.train import make_data_ready, resolve
    from bitnet.train.device import choose_device

    if {"-h", "--help"} & set(flags):
        parse(DiagnoseFlags, ["--help"], "diagnose")
    experiment, variant, options, config = resolve([name, *flags])
    make_data_ready(experiment, config, lambda text: print(text, file=sys.stderr, flush=True))
    return _subject(
        f"{experiment.name} ({variant}), a fresh model",
        experiment,
        variant,
        config,
        choose_device(options.device),
        full=full,
    )


def of_run(flags: DiagnoseFlags) -> Subject:
    """A run with its checkpoint and its files."""
    from bitnet.run.checkpoint import load_checkpoint, newest_good
    from bitnet.run.layout import find_run
    from bitnet.train.device import choose_device

    if flags.variant is not None:
        raise NotFoundError(
            f"there is no experiment {flags.name!r}, and --variant belongs to experiments; leave it out for "
            "a run"
        )
    reference = find_run(flags.name, flags.runs_dir)
    experiment, variant, config = config_of_run(reference.layout, flags.experiment)
    refuse_foreign_places(reference.layout, config, trust=flags.trust)
    damaged: list[str] = []
    if reference.step is None:
        checkpoint = newest_good(reference.layout, damaged.append, optimizer=False)
    else:
        checkpoint = load_checkpoint(reference.layout.checkpoint(reference.step), optimizer=False)
    return _subject(
        reference.layout.run_id,
        experiment,
        variant,
        config,
        choose_device(flags.device),
        full=flags.full,
        layout=reference.layout,
        checkpoint=checkpoint,
        damaged=damaged,
        step_named=reference.step is not None,
    )


def _subject(
    name: str,
    experiment: Experiment,
    variant: str,
    config: RunConfig,
    device: Any,
    *,
    full: bool,
    layout: RunLayout | None = None,
    checkpoint: Checkpoint | None = None,
    damaged: Sequence[str] = (),
    step_named: bool = True,
) -> Subject:
    """Everything as training would get it, handed over as values."""
    from bitnet.diagnose.subject import Subject
    from bitnet.optim.loss_scale import LossScale
    from bitnet.run.checkpoint import load_weights
    from bitnet.run.layout import RunLayout
    from bitnet.train import loop, start
    from bitnet.train.device import choose_machine
    from bitnet.trained_model import TrainedModel

    machine = choose_machine(config.train, device)
    trainer: Any = start  # under the names by which training itself calls them

    def settings(changes: Any) -> TrainConfig:
        return dataclasses.replace(config.train, **changes)

    def new_model(shape: Any) -> BitNetTransformer:
        start.seed_everything(config.train.seed)
        model: BitNetTransformer = trainer.BitNetTransformer(shape).to(machine.device)
        model.set_product(
            machine.product if "full" not in (shape.weights, shape.activations) else "float",
            machine.gradient_dtype,
        )
        return model

    def train(
        model: Any,
        optimizers: Any,
        source: Any,
        *,
        start_step: int = 0,
        num_steps: int | None = None,
        **changes: Any,
    ) -> Iterator[Any]:
        chosen = (
            settings(changes)
            if num_steps is None
            else settings({**vars(config.train.with_total_steps(num_steps)), **changes})
        )
        now = choose_machine(chosen, machine.device)
        formats = {"bf16": now.bf16, "scaling": LossScale(now.device) if now.fp16 else None}
        steps: Iterator[Any] = trainer.train_steps(
            model, model, source, optimizers, chosen, start_step=start_step, **formats
        )
        return steps

    task = experiment.open(config)
    model = new_model(config.model)
    if checkpoint is not None:
        load_weights(model, checkpoint)

    def complete(tokenizer: Any, prompt: str, count: int) -> str:
        return TrainedModel(layout or RunLayout(Path()), 0, model, tokenizer).complete(
            prompt, max_new_tokens=count, stop=None
        )

    declared = find_variant(experiment, variant)
    in_main_thread = threading.current_thread() is threading.main_thread()
    return Subject(
        name=name,
        config=config.model,
        **sections(config),
        task=task,
        model=model,
        new_model=new_model,
        train=train,
        complete=complete,
        new_optimizers=lambda model, **changes: trainer.Optimizers(
            model, settings(changes).optimizer_config()
        ),
        read_update=lambda source, step: loop.read_batches(source, config.train, step, 0, 1, machine.device),
        rates_at=lambda step, **changes: settings(changes).rates().rates_at(step),
        rehearse=(lambda folder: rehearse(experiment, variant, config, task, folder))
        if in_main_thread
        else None,
        criteria=declared.criteria,
        planned_tokens=declared.config.train.total_tokens,
        layout=layout,
        step=checkpoint.step if checkpoint else 0,
        damaged=damaged,
        step_named=step_named,
        bf16=machine.bf16 or machine.fp16,
        full=full,
    )


def sections(config: RunConfig) -> dict[str, Any]:
    """What was asked for of training and data, as meta/config.json has it."""
    described = config.to_json()
    return {"training": described["training"], "data": described["data"]}
