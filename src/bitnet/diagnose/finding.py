"""One finding of the examination: what was measured, what should be, and which part it speaks about.

A check is `direct` when it looks at one part by itself (an equality with an independent computation, a
definition that holds or not). A symptom looks at the whole (does it learn?) and fails for any broken part, so
it never outvotes a direct finding. `explained_by` names the parts whose own failure makes this check fail
too, whatever the state of its own part. `Part` writes a check in one call. Not here: the checks (check_*.py)
and what follows from them together (verdict.py).
"""

from __future__ import annotations

import math
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
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
        return {
            "name": self.name,
            "value": self.value,
            "expected": self.expected,
            "ok": self.ok,
            "suspect": self.suspect,
            "source": self.source,
            "detail": self.detail,
            "weight": self.weight,
            "direct": self.direct,
            "examined": self.examined,
        }


@dataclass(frozen=True, kw_only=True)
class Part:
    """What the checks of one part have in common, so that each of them is one call."""

    suspect: Suspect
    source: str
    weight: float = PROOF
    direct: bool = True
    explained_by: frozenset[Suspect] = frozenset()

    def holds(self, name: str, ok: bool, value: Any, expected: str, detail: str, **other: Any) -> Check:
        """A condition that is met or not. other: fields of Check that differ from the part's."""
        shared: dict[str, Any] = {
            "suspect": self.suspect,
            "source": self.source,
            "weight": self.weight,
            "direct": self.direct,
            "explained_by": self.explained_by,
        }
        return Check(
            **{
                **shared,
                "name": name,
                "ok": ok,
                "value": value,
                "expected": expected,
                "detail": detail,
                **other,
            }
        )

    def equal(self, name: str, value: Any, right: Any, detail: str, **other: Any) -> Check:
        """A value that must be one other."""
        return self.holds(name, value == right, value, str(right), detail, **other)

    def below(
        self, name: str, errors: Mapping[str, float], limit: float, what: str, detail: str, **other: Any
    ) -> Check:
        """The largest of some errors, which must not be above `limit`. what: the kind of error; NaN is above
        every limit.
        """
        where = max(
            errors, key=lambda key: errors[key] if math.isfinite(errors[key]) else math.inf, default="nothing"
        )
        found = errors.get(where, math.inf)
        return self.holds(
            name, below(found, limit), found, f"{what} <= {limit:g}", f"{where}: {detail}", **other
        )

    def within(self, name: str, value: float, low: float, high: float, detail: str, **other: Any) -> Check:
        """A value in a range, ends included."""
        return self.holds(name, low <= value <= high, value, f"{low:g}..{high:g}", detail, **other)


def below(value: float, limit: float) -> bool:
    """value <= limit, and false for NaN."""
    return math.isfinite(value) and value <= limit


def collect(group: str, suspect: Suspect, checks: Callable[[], Iterable[Check]]) -> Iterator[Check]:
    """The checks of a group as they come. A part so broken that it raises is a finding, not a crash of the
    examination.

    An error of the examination's own code is no finding: the group is then reported as not examined.
    """
    found: list[Check] = []
    try:
        for check in checks():
            found.append(check)
            yield check
    except Exception as error:  # noqa: BLE001 - whatever a broken part raises is the finding, and is shown
        after = f" (after: {found[-1].name})" if found else ""
        message = f"{type(error).__name__}: {error}".strip()[:300]
        place = raised_in(error)
        shared: dict[str, Any] = {
            "name": f"{group} can be examined",
            "value": message,
            "expected": "no error",
            "weight": STRONG,
            "source": "the examination itself",
            "ok": False,
        }
        if is_own(place):
            detail = (
                f"bitnet diagnose itself failed in {place}{after}: {message}; nothing is known about this "
                "part"
            )
            yield Check(suspect=suspect, detail=detail, examined=False, **shared)
            return
        yield Check(
            suspect=suspect,
            detail=f"the examined code raised an error in {place}{after}: {message}",
            explained_by=frozenset(SUSPECTS[: SUSPECTS.index("evaluation")]) - {suspect, "none"},
            **shared,
        )


LIBRARIES = tuple(
    str(Path(sysconfig.get_path(name))) for name in ("stdlib", "platstdlib", "purelib", "platlib")
)
OWN = (str(Path(__file__).parent), str(Path(__file__).parents[1] / "cli"))


def raised_in(error: BaseException) -> str:
    """File and line of the innermost frame that is no library's: whose code it was."""
    frames = traceback.extract_tb(error.__traceback__)
    package = str(Path(__file__).parents[1])  # may itself be installed among the libraries
    ours = [
        frame
        for frame in frames
        if frame.filename.startswith(package) or not frame.filename.startswith((*LIBRARIES, "<"))
    ]
    last = (ours or frames)[-1]
    return f"{last.filename}:{last.lineno}"


def is_own(place: str) -> bool:
    """Whether a file belongs to the examination."""
    return place.startswith(OWN)


def symptom(check: Check) -> Check:
    """The same check as one that any broken part makes fail."""
    return replace(check, direct=False, explained_by=frozenset(SUSPECTS) - {check.suspect, "none"})
