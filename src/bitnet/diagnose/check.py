"""One finding of the examination: what was measured, what should be, and which part it speaks about.

A check is `direct` when it looks at one part by itself (an equality with an independent computation, a definition that holds
or not). A symptom looks at the whole (does it learn?) and fails for any broken part, so it never outvotes a direct finding.
`explained_by` names the parts whose own failure makes this check fail too, whatever the state of its own part.
Not here: the checks (check_*.py) and what follows from them together (verdict.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

Suspect = Literal["quantization", "gradients", "optimizer", "data", "evaluation", "checkpoint", "size", "training", "decoding", "none"]
SUSPECTS: tuple[Suspect, ...] = get_args(Suspect)

PROOF, STRONG, HINT = 1.0, 0.6, 0.3
"""How much a failed check weighs: an equality that cannot fail by chance; a figure with a published or measured range; a rule of
thumb with an admitted doubt."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """value: what was measured; expected: the range in words; source: who says so; detail: what it means if it failed."""

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
        }


def below(value: float, limit: float) -> bool:
    """value <= limit, and false for NaN."""
    return math.isfinite(value) and value <= limit


def collect(group: str, suspect: Suspect, checks: Callable[[], Iterable[Check]]) -> Iterator[Check]:
    """The checks of a group as they come. A part so broken that it raises is a finding, not a crash of the examination."""
    found: list[Check] = []
    try:
        for check in checks():
            found.append(check)
            yield check
    except Exception as error:  # noqa: BLE001 - whatever a broken part raises is the finding, and is shown
        after = f" (after: {found[-1].name})" if found else ""
        message = f"{type(error).__name__}: {error}".strip()
        yield Check(
            name=f"{group} can be examined", suspect=suspect, ok=False, value=message[:300], expected="no error", weight=STRONG,
            source="the examination itself", detail=f"the examined code raised an error{after}: {message[:300]}",
            explained_by=frozenset(SUSPECTS[: SUSPECTS.index("evaluation")]) - {suspect, "none"},
        )  # fmt: skip


def symptom(check: Check) -> Check:
    """The same check as one that any broken part makes fail."""
    return replace(check, direct=False, explained_by=frozenset(SUSPECTS) - {check.suspect, "none"})
