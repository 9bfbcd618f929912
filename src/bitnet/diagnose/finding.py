"""One finding of the examination: what was measured, what should be, and which part it speaks about.

A check is `direct` when it looks at one part by itself (an equality with an independent computation, a
definition that holds or not). A symptom looks at the whole (does it learn?) and fails for any broken part, so
it never outvotes a direct finding. `explained_by` names the parts whose own failure makes this check fail
too, whatever the state of its own part. With a `Part`, a check takes two to four lines. Not here: the checks
(check_*.py) and what follows from them together (verdict.py).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

Suspect = Literal[
    "quantization",
    "gradients",
    "optimizer",
    "data",
    "evaluation",
    "checkpoint",
    "size",
    "training",
    "decoding",
    "engine",
    "none",
]
SUSPECTS: tuple[Suspect, ...] = get_args(Suspect)

PROOF, STRONG, HINT = 1.0, 0.6, 0.3
"""How much a failed check weighs: an equality that cannot fail by chance; a figure with a published or
measured range; a rule of thumb with an admitted doubt."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """value: what was measured; expected: the range in words; source: who says so; detail: what it means if
    it failed.
    """

    name: str
    suspect: Suspect
    ok: bool
    value: Any
    expected: str
    source: str
    detail: str = ""
    weight: float = PROOF
    direct: bool = True
    explained_by: frozenset[Suspect] = frozenset()
    examined: bool = True
    """False where the examination itself failed: then nothing is known about the part, and nothing is said
    against it."""

    def to_json(self) -> dict[str, Any]:
        """As the command prints it with --json."""
        return {key: value for key, value in vars(self).items() if key != "explained_by"}


@dataclass(frozen=True)
class Part:
    """What the checks of one part have in common.

    One check is then `PART("name of the check", "what a failure means").below(error, 1e-4)`.
    direct: False makes its checks symptoms, which any broken part explains.
    """

    suspect: Suspect
    source: str
    weight: float = PROOF
    explained_by: Collection[Suspect] = ()
    direct: bool = True

    def __call__(self, name: str, detail: str, **other: Any) -> Question:
        """A check without its measurement. other: fields of the part that differ for this check."""
        return Question(replace(self, **other) if other else self, name, detail)


@dataclass(frozen=True)
class Question:
    """A check whose measurement is still missing. Every method takes one and returns the check."""

    part: Part
    name: str
    detail: str

    def holds(self, ok: bool, value: Any, expected: str) -> Check:
        """A condition that is met or not. expected: the condition in words."""
        part = self.part
        others = part.explained_by if part.direct else set(SUSPECTS) - {part.suspect, "none"}
        return Check(
            name=self.name,
            suspect=part.suspect,
            ok=ok,
            value=value,
            expected=expected,
            source=part.source,
            detail=self.detail,
            weight=part.weight,
            direct=part.direct,
            explained_by=frozenset(others),
        )

    def equal(self, value: Any, right: Any) -> Check:
        """A value that must be one other."""
        number = isinstance(right, int) and not isinstance(right, bool)
        return self.holds(value == right, value, f"{right:,}" if number else str(right))

    def none(self, found: Sequence[object], what: str) -> Check:
        """Nothing may be found. what: the kind of thing; the first three that were found are named."""
        named = ": " + ", ".join(map(str, found[:3])) if found else ""
        return replace(self, detail=self.detail + named).holds(not found, len(found), f"0 {what}")

    def below(
        self, measured: float | Mapping[str, float], limit: float, what: str = "relative error"
    ) -> Check:
        """One error, or the largest of several by place, which must be at most `limit`. NaN is above every
        limit, and so is a mapping without errors.
        """
        if not isinstance(measured, Mapping):
            return self.holds(below(measured, limit), measured, f"{what} <= {limit:g}")
        error, where = worst(measured)
        return replace(self, detail=f"{where}: {self.detail}").below(error, limit, what)

    def at_least(self, value: float, limit: float, what: str = "") -> Check:
        """A value of `limit` or more. what: of which things."""
        return self.holds(value >= limit, value, f">= {limit:g} {what}".rstrip())

    def within(self, value: float, low: float, high: float, what: str = "") -> Check:
        """A value in a range, ends included."""
        return self.holds(low <= value <= high, value, f"{low:g}..{high:g} {what}".rstrip())


def below(value: float, limit: float) -> bool:
    """value <= limit, and false for NaN."""
    return math.isfinite(value) and value <= limit


def worst(errors: Mapping[str, float]) -> tuple[float, str]:
    """The largest error and where it is. NaN is the largest of all."""
    if not errors:
        return math.inf, "nothing could be measured"
    where = max(errors, key=lambda key: math.inf if math.isnan(errors[key]) else errors[key])
    return errors[where], where
