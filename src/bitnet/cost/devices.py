"""The table of devices, their rates and prices: devices.toml beside this file, or the user's edited copy.

A rate is what training sustains, in FLOP/s, or a data sheet's peak times an assumed share of it.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bitnet.errors import DataError, NotFoundError, did_you_mean
from bitnet.files import read_text

TABLE = Path(__file__).with_name("devices.toml")
MAX_BYTES = 1 << 20  # the table here has some 10 kB


@dataclass(frozen=True, kw_only=True)
class Device:
    """One row of the table. devices.toml explains the fields."""

    name: str
    kind: Literal["cpu", "cuda"]
    memory_gb: float | None = None
    peak_tflops: float | None = None
    utilisation: float | None = None
    sustained_tflops: float | None = None
    launch_ms_per_layer: float = 0.0
    measured: bool = False
    basis: str
    usd_per_hour: float | None = None
    price_basis: str = ""

    @property
    def flops_per_second(self) -> float:
        """The sustained rate."""
        if self.sustained_tflops is not None:
            return self.sustained_tflops * 1e12
        assert self.peak_tflops is not None
        assert self.utilisation is not None
        return self.peak_tflops * self.utilisation * 1e12


NUMBERS = (
    "memory_gb",
    "peak_tflops",
    "utilisation",
    "sustained_tflops",
    "launch_ms_per_layer",
    "usd_per_hour",
)
TEXTS = ("name", "kind", "basis", "price_basis")


def load_devices(path: Path = TABLE) -> tuple[Device, ...]:
    """The devices of a TOML file. Raises NotFoundError without the file, DataError if it is wrong."""
    try:
        content = tomllib.loads(read_text(path, MAX_BYTES, f"compare it with {TABLE}"))
    except NotFoundError:
        raise NotFoundError(f"there is no file {path}; copy {TABLE} and edit the copy") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as TOML ({error}); compare it with {TABLE}") from None
    rows = content.get("device")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path} has no [[device]] section; compare it with {TABLE}")
    return tuple(_device(row, f"{path}, device {number}") for number, row in enumerate(rows, start=1))


def _device(row: Mapping[str, Any], where: str) -> Device:
    """Check one row."""
    fields = {field.name: field.default is dataclasses.MISSING for field in dataclasses.fields(Device)}
    for key in row:
        if key not in fields:
            raise DataError(f"{where}: there is no field {key!r}.{did_you_mean(key, fields)}")
    missing = [name for name, required in fields.items() if required and name not in row]
    if missing:
        raise DataError(f"{where}: {missing[0]} is missing; compare it with {TABLE}")
    for key in TEXTS:
        if key in row and not isinstance(row[key], str):
            raise DataError(f"{where}: {key} is {row[key]!r}; it must be a text in quotes")
    for key in NUMBERS:
        if key in row and not _positive(row[key]):
            raise DataError(f"{where}: {key} is {row[key]!r}; it must be a positive number")
    if row["kind"] not in ("cpu", "cuda"):
        raise DataError(f'{where}: kind is {row["kind"]!r}; it must be "cpu" or "cuda"')
    if not isinstance(row.get("measured", False), bool):
        raise DataError(f"{where}: measured is {row['measured']!r}; it must be true or false")
    if ("sustained_tflops" in row) == ("peak_tflops" in row and "utilisation" in row):
        raise DataError(f"{where}: give either sustained_tflops, or both peak_tflops and utilisation")
    return Device(**row)


def _positive(value: object) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0
    )
