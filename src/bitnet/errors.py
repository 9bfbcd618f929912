"""The kinds of user error. Each message says the value, the rule it breaks, and the fix.

The command line prints one line and exits with code 2. This file is not for broken invariants of
our own: those are assertions.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BitnetError(Exception):
    """Something the user can put right. Its text is one line and ends with the fix."""


class ConfigError(BitnetError, ValueError):
    """A setting has the wrong type, is out of range, or contradicts another setting."""


class NotFoundError(BitnetError, LookupError):
    """A name (experiment, variant, run, file) stands for nothing that exists."""


class DataError(BitnetError, ValueError):
    """Text, token ids or a data file cannot be used."""


class CheckpointError(BitnetError):
    """A checkpoint is missing, cut short or altered."""


class NotFiniteError(BitnetError):
    """A model's output, or what a checkpoint would hold, is NaN or infinite."""


class RunError(BitnetError):
    """A run directory is in a state that forbids what was asked."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """' Did you mean "x"?' for a near miss, else the list of what there is."""
    choices = sorted(known)
    close = difflib.get_close_matches(name, choices, n=1)
    if close:
        return f' Did you mean "{close[0]}"?'
    return f" There is: {', '.join(choices)}." if choices else ""


class TrainingFailed(BitnetError):
    """Training went wrong although the input was fine (exit code 1)."""
