"""Data settings: the base of every experiment's own, with what the command line may ask of them.

A user's experiment file states here what its data section can do. The command line looks at nothing else: it
never asks which experiment it has.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self


class ShortFlag(NamedTuple):
    """A short flag of `bitnet train` that sets one field of the data settings, as `--data.FIELD` does."""

    name: str
    """Without its dashes."""
    field: str
    about: str
    """What --help says."""


@dataclass(frozen=True)
class Origin:
    """The run that a new run begins from: `bitnet train NAME --from RUN`."""

    tokenizer: str
    """Folder of its tokenizer."""
    text: Callable[[], str]
    """Finds the folder of the token shards that it was trained on, and returns "" where it read none."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Base of every experiment's data settings. They are the section `data` of meta/config.json.

    An experiment that converses has a field `speaker`, the name before the answers: `bitnet chat` reads it
    from the run and uses the chat template.
    """

    dataset: str
    """What the data is called."""

    outside: ClassVar[tuple[str, ...]] = ()
    """Fields that name files, folders or data sets outside the run. Those of somebody else's run are followed
    only when the user asks for it."""
    short_flags: ClassVar[tuple[ShortFlag, ...]] = ()

    def with_flags(self, given: Mapping[str, Any]) -> Self:
        """The settings with the short flags that were given, by field. Override it where more follows from a
        flag; it is called without flags too.
        """
        return dataclasses.replace(self, **given)

    def begun_from(self, origin: Origin) -> Self:
        """The settings of a run that begins from another run. Override it to take over its tokenizer."""
        return self

    def settled(self, say: Callable[[str], None]) -> Self:
        """The settings with every choice made that depends on this machine, so that meta/config.json names
        what was taken. `say` tells the user.
        """
        return self

    def derived(self) -> dict[str, Any]:
        """Figures that follow from the fields, for meta/config.json."""
        return {}
