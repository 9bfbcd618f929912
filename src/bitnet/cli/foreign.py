"""Runs from somebody else are read as data, and what their configuration names outside the run is left alone.

A run is foreign unless this user trained it (run/signature.py). The experiment's own file is never executed
because a run names it, not even the user's own: only a file that is named on the command line is. Files,
folders and data sets that a foreign configuration names are neither read nor written unless the user says
`--trust`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitnet.errors import ConfigError, DataError, RunError

if TYPE_CHECKING:
    from bitnet.run.layout import RunLayout
    from bitnet.train.config import RunConfig


def experiment_of(layout: RunLayout, stored: dict[str, Any], file: Path | None) -> str:
    """The name or file of the experiment to open. Raises RunError for a run of a user's file that this
    command does not name.
    """
    name, recorded = stored.get("experiment"), stored.get("experiment_file")
    if not isinstance(name, str):
        raise DataError(f"{layout.config} does not name its experiment; restore the file or start a new run")
    if file is not None:
        return str(file)
    if recorded is not None or name.endswith(".py"):
        raise RunError(
            f"the experiment {name} of {layout.run_id} is not part of this program, and code that a run "
            "names is not executed; "
            f"name its file, as in: --experiment {Path(str(recorded or name)).name}"
        )
    return name


def check_same_experiment(layout: RunLayout, stored: dict[str, Any], name: str, file: Path | None) -> None:
    """Raise ConfigError where the file that was named defines another experiment than the run was trained
    on.
    """
    trained = stored.get("experiment")
    if file is not None and name != trained:
        raise ConfigError(
            f"{file} defines the experiment {name!r}, but {layout.run_id} trained {trained!r}; name its file"
        )


def refuse_foreign_places(layout: RunLayout, config: RunConfig, *, trust: bool) -> None:
    """Raise RunError where somebody else's configuration names places outside the run, unless the user trusts
    it.
    """
    from bitnet.run.signature import is_own

    places = outside_places(config)
    if places and not trust and not is_own(layout):
        named = ", ".join(f"{name} {value!r:.250}" for name, value in places.items())
        raise RunError(
            f"{layout.run_id} was not trained by you, or was altered since, and its configuration names "
            "places outside the run "
            f"({named:.1500}); they are neither read nor written unless you repeat the command with --trust"
        )


def outside_places(config: RunConfig) -> dict[str, Any]:
    """Settings that name files, folders or data sets outside the run."""
    places = {f"data.{name}": getattr(config.data, name) for name in type(config.data).outside}
    places["training.start_from"] = config.train.start_from
    return {name: value for name, value in places.items() if value}
