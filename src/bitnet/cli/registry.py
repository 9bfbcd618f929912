"""Find experiments: the files of bitnet.experiments, or a file of the user's by path."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import pkgutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitnet.errors import DataError, NotFoundError, did_you_mean

if TYPE_CHECKING:
    from bitnet.run.layout import RunLayout
    from bitnet.train.config import RunConfig
    from bitnet.train.experiment import Experiment, Variant


SHARED = "conversation_data generated_task measured ready_text real_text recipes shapes text_data".split()
"""Files of bitnet.experiments that define no experiment."""


def experiment_names() -> list[str]:
    """Names of the experiments, found without importing any of them."""
    import bitnet.experiments

    return sorted(m.name for m in pkgutil.iter_modules(bitnet.experiments.__path__) if m.name not in SHARED)


def find_experiment(word: str) -> Experiment:
    """The experiment of this name, or in this file (which must define `experiment`)."""
    from bitnet.train.experiment import Experiment

    if word.endswith(".py"):
        module = _load_file(Path(word))
    elif word in experiment_names():
        module = importlib.import_module(f"bitnet.experiments.{word}")
    else:
        names = experiment_names()
        raise NotFoundError(
            f"there is no experiment {word!r}.{did_you_mean(word, names)} See: bitnet experiments"
        )
    found = getattr(module, "experiment", None)
    if not isinstance(found, Experiment):
        raise DataError(
            f"{word} does not define `experiment = Experiment(...)`; see CONTRIBUTING.md for how to write one"
        )
    return dataclasses.replace(found, file=str(Path(word).resolve())) if word.endswith(".py") else found


def _load_file(path: Path) -> Any:
    """Import a user's own experiment file."""
    if not path.is_file():
        raise NotFoundError(f"there is no file {path}; give the path of a file that defines `experiment`")
    spec = importlib.util.spec_from_file_location(f"bitnet_experiment_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever the user's file raises is the user's to see
        raise DataError(
            f"{path} could not be imported ({type(error).__name__}: {error}); correct it and try again"
        ) from error
    return module


def find_variant(experiment: Experiment, name: str) -> Variant:
    """A variant of an experiment by name."""
    if name not in experiment.variants:
        raise NotFoundError(
            f"{experiment.name} has no variant {name!r}.{did_you_mean(name, experiment.variants)}"
        )
    return experiment.variants[name]


def experiment_of_run(layout: RunLayout, file: Path | None = None) -> Experiment:
    """The experiment that a run was trained on.

    file: the user's own experiment file, where the run was trained from one; a file that only the run names
    is never executed.
    """
    from bitnet.cli.foreign import check_same_experiment, experiment_of
    from bitnet.run.manifest import read_config

    stored = read_config(layout)
    experiment = find_experiment(experiment_of(layout, stored, file))
    check_same_experiment(layout, stored, experiment.name, file)
    return experiment


def config_of_run(layout: RunLayout, file: Path | None = None) -> tuple[Experiment, str, RunConfig]:
    """Experiment, variant name and configuration of an existing run, from its meta/config.json.

    file: the user's own experiment file, where the run was trained from one; a file that only the run names
    is never executed.
    """
    from bitnet.nn.config import config_from_dict
    from bitnet.run.manifest import read_config, verify_run
    from bitnet.train.config import DERIVED, RunConfig, TrainConfig
    from bitnet.typed import from_json

    verify_run(layout)
    stored = read_config(layout)
    try:
        experiment = experiment_of_run(layout, file)
        variant = stored["variant"]
        data_type = type(find_variant(experiment, variant).config.data)
        config = RunConfig(
            model=config_from_dict(stored["model"], f"{layout.config}, section model,"),
            train=from_json(
                TrainConfig, stored["training"], f"{layout.config}, section training,", others=DERIVED
            ),
            data=from_json(data_type, stored["data"], f"{layout.config}, section data,"),
        )
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{layout.config} lacks or garbles {error}; restore the file or start a new run"
        ) from None
    return experiment, variant, config
