"""Numbers, sizes and times for people. Sizes are decimal: 1 MB is 10^6 bytes.

Free of torch, so that a command that only prints answers at once.
"""

from __future__ import annotations

HOUR_S, DAY_S, YEAR_DAYS = 3600, 86_400, 365.25
LONGEST_IN_HOURS_S = 2 * DAY_S


def figure(value: float) -> str:
    """A measured value with four decimals, or more where four would show 1 (or 0) for what is not quite 1 (or
    0).
    """
    return next(
        text
        for digits in range(4, 18)
        if (text := f"{value:.{digits}f}") and (float(text) in (0, 1)) <= (value in (0, 1))
    )


def parameters_label(count: int) -> str:
    """A number of parameters as run ids write it: 13K, 0.8M, 95M, 1.2B."""
    least, size, letter = next(
        unit for unit in ((10**9, 10**9, "B"), (10**5, 10**6, "M"), (0, 10**3, "K")) if count >= unit[0]
    )
    return f"{count / size:.{1 if least and count < 9.95 * size else 0}f}{letter}"


def short_count(value: float) -> str:
    """A number of tokens or parameters with three digits: 12.3 M, 1.97 B."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:g}"


def scaled(value: float) -> str:
    """Three digits and a decimal prefix to put before a unit: `4.83 M` before FLOP."""
    for prefix in ("", "k", "M", "G", "T", "P", "E"):
        if value < 999.5:
            return f"{value:.3g} {prefix}"
        value /= 1000
    return f"{value:.3g} Z"


def byte_size(count: float) -> str:
    """A number of bytes: 3.17 MB."""
    return f"{scaled(count)}B"


def megabytes(count: float) -> str:
    """A number of bytes that grows while it is shown: 1,234.5 MB."""
    return f"{count / 1e6:,.1f} MB"


def duration(seconds: float) -> str:
    """12s, 3m20s, 10h02m, 12.3 days, 45 years."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < HOUR_S:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < LONGEST_IN_HOURS_S:
        return f"{whole // HOUR_S}h{whole % HOUR_S // 60:02d}m"
    days = seconds / DAY_S
    return f"{days:.1f} days" if days < 1000 else f"{days / YEAR_DAYS:,.0f} years"
