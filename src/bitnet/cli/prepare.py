"""`bitnet prepare NAME --out FILE`: the data of an experiment as a file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from bitnet.cli.catalogue import check_positive, find_experiment, find_variant
from bitnet.cli.flags import parse
from bitnet.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True)
class PrepareFlags:
    """Flags of `bitnet prepare`."""

    experiment: Positional[str]
    """Which experiment's data."""
    out: Path
    """Text file to write; it must not exist yet."""
    count: int = 1_000_000
    """Lines to write."""
    variant: str = "reference"
    """Whose settings to use."""


def main(arguments: Sequence[str]) -> int:
    """Write the lines under a temporary name, then rename: the file is whole or absent."""
    flags = parse(PrepareFlags, arguments, "prepare")
    check_positive(flags.count, "--count")
    experiment = find_experiment(flags.experiment)
    if "prepare" not in experiment.extra:
        raise ConfigError(f"{experiment.name} has no text to write; prepare works for arithmetic")
    if flags.out.exists():
        raise DataError(f"{flags.out} exists; delete it or choose another --out")
    lines = experiment.extra["prepare"](find_variant(experiment, flags.variant).config, flags.count)
    temporary = flags.out.with_name(f".{flags.out.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(lines)
        temporary.rename(flags.out)
    except OSError as error:
        raise DataError(f"{flags.out} cannot be written ({error.strerror}); choose another --out") from None
    finally:
        temporary.unlink(missing_ok=True)
    print(f"wrote {flags.count:,} lines to {flags.out}")
    return 0
