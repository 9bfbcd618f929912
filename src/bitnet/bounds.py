"""The range of a number that a person may set, and the message for one outside it.

Every number has a lower and an upper bound. A size of 9223372036854775807 or a rate of 3.5e38 is a mistake,
and one line at once is better than an overflow, a process without memory, or hours of useless work. The upper
bounds are far above what anybody trains.
"""

from __future__ import annotations

import math
from typing import Any

from bitnet.errors import ConfigError

MOST_TOKENS = 10**15  # of a run or a data set; all text there is has about 10^14
MOST_STEPS = 10**12  # updates, or updates between two events; more than a run can make means never
MOST_ROWS = 1 << 20
MOST_DOCUMENTS = 10**12
MOST_NEW_TOKENS = 10**6
MOST_ENTRIES = 1 << 22  # of a vocabulary; the largest published have about 2^18
MOST_SHOWN = 10_000
SEEDS = (0, 2**63 - 1)  # what torch's generators take
LONGEST_DIGITS = 30  # of a number that a message repeats in full

Bounds = tuple[float, float]


def within(name: str, value: float | None, low: float, high: float) -> None:
    """Raise ConfigError unless low <= value <= high. None means not given. name: as the user types it."""
    if value is None or (not _is_nan(value) and low <= value <= high):
        return
    rule = f"at most {_said(high)}" if value > high else f"at least {_said(low)}"
    raise ConfigError(f"{name} is {_said(value)}; it must be {rule}")


def check_fields(section: str, settings: Any, bounds: dict[str, Bounds]) -> None:
    """`within` for the fields of a dataclass. section: prefix of their names in messages, as in `train.`."""
    for name, (low, high) in bounds.items():
        within(f"{section}{name}", getattr(settings, name), low, high)


def _is_nan(value: float) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _said(value: int | float) -> str:
    if isinstance(value, float) or abs(value) < 10**LONGEST_DIGITS:
        return str(value)
    return f"a number of {math.floor(math.log10(abs(value))) + 1} digits"
