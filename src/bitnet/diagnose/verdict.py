"""From findings to a verdict: which part is broken, how sure that is, what says so, and what to do next.

A broken part makes others look broken: without a causal mask the gradients differ from the reference, and
with shuffled data nothing learns. So a failed check counts for its part only while no part that explains it
(`explained_by`) has failed by itself; and symptoms count only where no direct check failed. What is left is
added up by weight.

A run that has not made all its updates is unfinished, which is no fault; so is one whose plan was cut short
and that misses its criteria for no other reason. What the examination itself could not examine speaks against
no part, but nothing is called healthy then.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from bitnet.diagnose.finding import HINT, PROOF, STRONG, SUSPECTS, Check, Suspect

NEXT: dict[Suspect, str] = {  # in the order of the tree, upstream first
    "checkpoint": (
        "use an older checkpoint (bitnet diagnose RUN/checkpoints/step_NNNNNN), or train again; look for a "
        "full disk"
    ),
    "data": (
        "look at a decoded batch and its targets, at the tokenizer of shards and model, and at which rows "
        "an update reads"
    ),
    "quantization": (
        "compare the named part with its formula in bitnet/nn; the control (--control) tells whether it is "
        "the ternary part"
    ),
    "gradients": (
        "follow the gradient back from the named parameter: straight-through, detach, the mean over scored "
        "tokens, the loss"
    ),
    "optimizer": (
        "compare rates in metrics/scalars.jsonl with the schedule, and the named parameter with the "
        "optimizer's groups"
    ),
    "evaluation": (
        "do not trust the held-out figures before the named check passes: the rows, the model's mode, the "
        "loss function"
    ),
    "decoding": (
        "the model may be fine: judge it by its loss, and repair the named step of decoding or sampling"
    ),
    "engine": (
        "the model may be fine: use --engine torch, and compare the named matrix or way of reading with "
        "bitnet/engine"
    ),
    "size": "train a larger model, or lower the vocabulary; bitnet cost shows what that takes",
    "training": (
        "train longer: raise --num-steps (20 tokens per parameter for text), and judge at the end, since "
        "the loss is S-shaped"
    ),
    "none": "nothing to repair; if the output is still poor, train with --control and look at bitnet compare",
}
TREE: tuple[Suspect, ...] = tuple(suspect for suspect in NEXT if suspect != "none")
"""In this order a tie is broken: what comes first is upstream."""
GO_ON = "repeat the command that trained it, which continues the run, and diagnose it again at its end"
REPORT = "the examination is incomplete, which is a fault of bitnet diagnose; report the error above"
EXPERIMENTS = (
    (
        "bitnet train baseline --variant tinystories_2k",
        "the 95M model on stories with 2,048 entries: was the vocabulary too large?",
    ),
    (
        "bitnet train baseline --variant 400k --num-steps 4000000",
        "ten times longer: was it trained too little?",
    ),
    (
        "bitnet train baseline --variant 200m",
        "more than 200M parameters for 32,000 entries: was it too small?",
    ),
)
"""What the plan tries next where training works and the full-sized model still writes garbage (its decision
tree, section 8)."""


@dataclass(frozen=True)
class Verdict:
    """suspect: none when healthy; sureness: 0..1; evidence: failed checks that speak for it; explained:
    failed ones that follow.
    """

    suspect: Suspect
    sureness: float
    evidence: tuple[Check, ...]
    explained: tuple[Check, ...]
    others: tuple[Suspect, ...]
    """Further parts with unexplained failures."""
    unfinished: str | None = None
    """What is missing where a run has not made all its updates, or its plan was cut short."""
    unexamined: tuple[Check, ...] = ()
    """Groups of checks that the examination itself failed in."""

    @property
    def healthy(self) -> bool:
        """Whether everything was examined and nothing is suspected."""
        return self.suspect == "none" and not self.unexamined

    @property
    def next(self) -> str:
        """What to do."""
        if self.suspect == "none" and self.unexamined:
            return REPORT
        return GO_ON if self.unfinished and self.suspect == "none" else NEXT[self.suspect]

    @property
    def experiments(self) -> tuple[tuple[str, str], ...]:
        """Commands and their questions, for what is healthy and has ended."""
        return EXPERIMENTS if self.healthy and not self.unfinished else ()

    @property
    def words(self) -> str:
        """How sure, in words."""
        if self.unfinished and self.suspect in ("none", "training"):
            return "unfinished"
        return "sure" if self.sureness >= 0.9 else "likely" if self.sureness >= 0.55 else "a hint"

    def to_json(self) -> dict[str, Any]:
        """As the command prints it with --json, without the checks."""
        return {
            "healthy": self.healthy,
            "suspect": self.suspect,
            "sureness": round(self.sureness, 3),
            "sure": self.words,
            "evidence": [check.name for check in self.evidence],
            "explained": [check.name for check in self.explained],
            "others": list(self.others),
            "unfinished": self.unfinished,
            "not_examined": [check.name for check in self.unexamined],
            "next": self.next,
            "experiments": [command for command, _ in self.experiments],
        }


def judge(checks: Sequence[Check], unfinished: str | None = None) -> Verdict:
    """The verdict on all checks of an examination. unfinished: what of the run is still to come, or None."""
    unexamined = tuple(check for check in checks if not check.examined)
    found = _judged([check for check in checks if check.examined])
    return replace(found, unfinished=unfinished, unexamined=unexamined)


def _judged(checks: Sequence[Check]) -> Verdict:
    failed = [check for check in checks if not check.ok]
    if not failed:
        done = sum(check.weight for check in checks)
        return Verdict("none", 0.95 if done >= 20 else 0.5, (), (), ())

    # Symptoms count only where no direct check failed.
    counted = _unexplained([check for check in failed if check.direct] or failed)
    weights: dict[Suspect, float] = defaultdict(float)
    for check in counted:
        weights[check.suspect] += check.weight
    suspect = min(weights, key=lambda name: (-_rank(counted, name), TREE.index(name)))

    evidence = tuple(check for check in counted if check.suspect == suspect)
    rest = tuple(check for check in failed if check not in evidence)
    share = weights[suspect] / sum(weights.values())
    strongest = max(check.weight for check in evidence) * (1.0 if evidence[0].direct else 0.9)
    others = tuple(name for name in TREE if name in weights and name != suspect)
    return Verdict(suspect, min(0.98, strongest * (0.5 + 0.5 * share)), evidence, rest, others)


def _rank(counted: Sequence[Check], suspect: Suspect) -> float:
    """The strongest finding first, then their number: many hints do not outvote a proof."""
    weights = sorted((check.weight for check in counted if check.suspect == suspect), reverse=True)
    return weights[0] + 0.1 * min(sum(weights[1:]), 5.0)


def _unexplained(pool: Sequence[Check]) -> list[Check]:
    """Checks that no part upstream explains. A part explains others only by failures that are its own, not
    explained in turn.
    """
    standing: list[Check] = list(pool)
    for part in TREE:
        own = [check for check in standing if check.suspect == part and not _explained(check, standing)]
        if own:
            standing = [check for check in standing if check in own or part not in check.explained_by]
    left = [check for check in standing if not _explained(check, standing)]
    return left or standing or list(pool)


def _explained(check: Check, standing: Sequence[Check]) -> bool:
    """Whether a part that explains this check has failures that this check's part does not explain back."""
    return any(
        other.suspect in check.explained_by and check.suspect not in other.explained_by
        for other in standing
        if other is not check
    )


assert set(TREE) | {"none"} == set(SUSPECTS)
assert HINT < STRONG < PROOF
