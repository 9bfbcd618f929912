"""From findings to a verdict: which part is broken, how sure that is, what says so, and what to do next.

A broken part makes others look broken: without a causal mask the gradients differ from the reference, and with shuffled data
nothing learns. So a failed check counts for its part only while no part that explains it (`explained_by`) has failed by itself; and
symptoms count only where no direct check failed. What is left is added up by weight.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bitnet.diagnose.check import HINT, PROOF, STRONG, SUSPECTS, Check, Suspect

TREE: tuple[Suspect, ...] = ("checkpoint", "data", "quantization", "gradients", "optimizer", "evaluation", "decoding", "size", "training")
"""In this order a tie is broken: what comes first is upstream."""

NEXT: dict[Suspect, str] = {
    "checkpoint": "use an older checkpoint (bitnet diagnose RUN/checkpoints/step_NNNNNN), or train again; look for a full disk",
    "data": "look at a decoded batch and its targets, at the tokenizer of shards and model, and at which rows an update reads",
    "quantization": "compare the named part with its formula in bitnet/nn; the control (--control) tells whether it is the ternary part",
    "gradients": "follow the gradient back from the named parameter: straight-through, detach, the mean over scored tokens, the loss",
    "optimizer": "compare rates in metrics/scalars.jsonl with the schedule, and the named parameter with the optimizer's groups",
    "evaluation": "do not trust the held-out figures before the named check passes: the rows, the model's mode, the loss function",
    "decoding": "the model may be fine: judge it by its loss, and repair the named step of decoding or sampling",
    "size": "train a larger model, or lower the vocabulary; bitnet cost shows what that takes",
    "training": "train longer: raise --num-steps (20 tokens per parameter for text), and judge at the end, since the loss is S-shaped",
    "none": "nothing to repair; if the output is still poor, train with --control and look at bitnet compare",
}


@dataclass(frozen=True)
class Verdict:
    """suspect: none when healthy; sureness: 0..1; evidence: failed checks that speak for it; explained: failed ones that follow."""

    suspect: Suspect
    sureness: float
    evidence: tuple[Check, ...]
    explained: tuple[Check, ...]
    others: tuple[Suspect, ...]
    """Further parts with unexplained failures."""

    @property
    def healthy(self) -> bool:
        """Whether nothing is suspected."""
        return self.suspect == "none"

    @property
    def next(self) -> str:
        """What to do."""
        return NEXT[self.suspect]

    @property
    def words(self) -> str:
        """How sure, in words."""
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
            "next": self.next,
        }


def judge(checks: Sequence[Check]) -> Verdict:
    """The verdict on all checks of an examination."""
    failed = [check for check in checks if not check.ok]
    if not failed:
        done = sum(check.weight for check in checks)
        return Verdict("none", 0.95 if done >= 20 else 0.5, (), (), ())
    direct = [check for check in failed if check.direct]
    pool = direct or failed
    counted = _unexplained(pool)
    weights: dict[Suspect, float] = defaultdict(float)
    for check in counted:
        weights[check.suspect] += check.weight
    suspect = min(weights, key=lambda name: (-_rank(counted, name), TREE.index(name)))
    evidence = tuple(check for check in counted if check.suspect == suspect)
    rest = tuple(check for check in failed if check not in evidence)
    share = weights[suspect] / sum(weights.values())
    strongest = max(check.weight for check in evidence)
    sureness = min(0.98, (strongest if evidence[0].direct else 0.9 * strongest) * (0.5 + 0.5 * share))
    return Verdict(suspect, sureness, evidence, rest, tuple(name for name in TREE if name in weights and name != suspect))


def _rank(counted: Sequence[Check], suspect: Suspect) -> float:
    """The strongest finding first, then their number: many hints do not outvote a proof."""
    weights = sorted((check.weight for check in counted if check.suspect == suspect), reverse=True)
    return weights[0] + 0.1 * min(sum(weights[1:]), 5.0)


def _unexplained(pool: Sequence[Check]) -> list[Check]:
    """Checks that no part upstream explains. A part explains others only by failures that are its own, not explained in turn."""
    standing: list[Check] = list(pool)
    for part in TREE:
        own = [check for check in standing if check.suspect == part and not _explained(check, standing)]
        if own:
            standing = [check for check in standing if check in own or part not in check.explained_by]
    left = [check for check in standing if not _explained(check, standing)]
    return left or standing or list(pool)


def _explained(check: Check, standing: Sequence[Check]) -> bool:
    """Whether a part that explains this check has failures that this check's part does not explain back."""
    return any(other.suspect in check.explained_by and check.suspect not in other.explained_by for other in standing if other is not check)


assert set(TREE) | {"none"} == set(SUSPECTS)
assert HINT < STRONG < PROOF
