"""Numbers for people: measured values, and the size of a model. Free of torch, so that a command that only
prints answers at once.
"""

from __future__ import annotations


def figure(value: float) -> str:
    """Four decimals, and as many as it takes not to show 1 (or 0) for what is not quite 1 (or 0)."""
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
