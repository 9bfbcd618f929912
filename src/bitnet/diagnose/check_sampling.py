"""Are tokens chosen by the rule that was named: greedy, temperature, top-k, top-p, seeds? Suspect: decoding.

Both the distribution that is written down and the tokens that are really drawn are compared with the
definitions, written down once more in plain float64 (`allowed`). No model is needed here; what a decoder does
with the choice is check_decoding.py's matter.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from bitnet.diagnose.finding import STRONG, Check, Part
from bitnet.generate import sampling, snapshot
from bitnet.generate.sampling import Sampling

DRAWS, FAR = 4096, 0.06
"""Total variation distance allowed between DRAWS draws and their distribution over at most 24 ids: expected
about 0.03."""
WAYS = (
    Sampling(temperature=0.7),
    Sampling(temperature=1.0),
    Sampling(temperature=2.0),
    Sampling(temperature=1.0, top_k=3),
    Sampling(temperature=1.5, top_k=10),
    Sampling(temperature=1.0, top_p=0.5),
    Sampling(temperature=0.9, top_p=0.95),
    Sampling(temperature=1.3, top_k=8, top_p=0.8),
)
PLAN = {"greedy": (0.0, None, None), "typical": (0.9, 0.95, None), "stress": (1.5, None, 10)}
"""Temperature, top-p and top-k of each named mode (config-95m, section 5E)."""
DECODING = Part("decoding", "definitions, recomputed in float64; top-p arXiv:1904.09751; config-95m, 5E")


def allowed(logits: Tensor, how: Sampling) -> Tensor:
    """The distribution that a way of sampling means, in float64. logits: (V,).

    softmax(logits / temperature); of it the top_k most likely; of those the fewest most likely that hold
    top_p; renormalised (arXiv:1904.09751 for top-p).
    """
    exact = logits.double() / how.temperature
    probs = (exact - exact.max()).exp()
    probs = probs / probs.sum()
    order = sorted(range(len(probs)), key=lambda index: -float(probs[index]))
    kept = order[: how.top_k] if how.top_k is not None else order
    if how.top_p is not None:
        total, inside, held = sum(float(probs[index]) for index in kept), [], 0.0
        for index in kept:
            if held >= how.top_p:
                break
            inside.append(index)
            held += float(probs[index]) / total
        kept = inside
    result = torch.zeros_like(probs)
    result[kept] = probs[kept]
    return result / result.sum()


def distributions() -> Iterator[Check]:
    """The distributions that are sampled from, and what really is drawn, for every way of sampling."""
    logits = torch.randn(24, generator=torch.Generator().manual_seed(3)) * 2
    rows = logits.expand(DRAWS, -1)
    written: dict[str, float] = {}
    drawn: dict[str, float] = {}
    for how in WAYS:
        right = allowed(logits, how)
        chosen = sampling.choose(rows, how, how.generator(rows.device))
        shares = torch.bincount(chosen, minlength=len(logits)).double() / DRAWS
        written[str(how)] = distance(sampling.probabilities(logits[None], how)[0], right)
        drawn[str(how)] = math.inf if bool(shares[right == 0].any()) else distance(shares, right)
    yield DECODING("temperature, top-k and top-p as defined", "another distribution is sampled from").below(
        written, 1e-3, "total variation distance"
    )
    other = "tokens are drawn that should not be, or in other shares"
    yield DECODING("draws follow their distribution", other).below(
        drawn, FAR, f"total variation distance over {DRAWS} draws"
    )

    best = sampling.choose(logits[None], sampling.GREEDY, sampling.GREEDY.generator(logits.device))
    yield DECODING("greedy choice is argmax", "temperature 0 does not take the largest logit").equal(
        int(best), int(logits.argmax())
    )
    named = {mode: (how.temperature, how.top_p, how.top_k) for mode, how in snapshot.MODES.items()}
    other = "greedy, typical or stress means something else"
    yield DECODING("named modes are the plan's", other, weight=STRONG).equal(named, PLAN)


def distance(one: Tensor, other: Tensor) -> float:
    """Total variation distance of two distributions."""
    return 0.5 * float((one.double() - other.double()).abs().sum())
