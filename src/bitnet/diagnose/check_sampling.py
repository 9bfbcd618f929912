"""Are tokens chosen by the rule that was named: greedy, temperature, top-k, top-p, seeds? Suspect: decoding.

Both the distribution that is written down and the tokens that are really drawn are compared with the
definitions, written down once more in plain float64 (`allowed`). No model is needed here; what a decoder does
with the choice is check_decoding.py's matter.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bitnet.diagnose.finding import STRONG, Check, Part, below, worst
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
DECODING = Part("decoding", "definitions, recomputed in float64; top-p arXiv:1904.09751")


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


def _test_logits() -> Tensor:
    return torch.randn(24, generator=torch.Generator().manual_seed(3)) * 2


def _words(how: Sampling) -> str:
    return (
        f"temperature {how.temperature:g}"
        + (f", top-k {how.top_k}" if how.top_k else "")
        + (f", top-p {how.top_p:g}" if how.top_p else "")
    )


def distributions() -> Iterator[Check]:
    """The distributions that are sampled from, and what really is drawn, for every way of sampling."""
    logits = _test_logits()
    rows = logits.expand(DRAWS, -1)
    written: dict[str, float] = {}
    drawn: dict[str, float] = {}
    outside: list[str] = []
    for how in WAYS:
        right = allowed(logits, how)
        written[_words(how)] = 0.5 * float(
            (sampling.probabilities(logits[None], how)[0].double() - right).abs().sum()
        )
        chosen = sampling.choose(rows, how, how.generator(rows.device))
        shares = torch.bincount(chosen, minlength=len(logits)).double() / DRAWS
        drawn[_words(how)] = 0.5 * float((shares - right).abs().sum())
        outside += [_words(how)] if bool((shares[right == 0] > 0).any()) else []
    error, where = worst(written)
    yield DECODING(
        "temperature, top-k and top-p as defined", f"{where}: another distribution is sampled from"
    ).below(error, 1e-3, "total variation distance")
    error, where = worst(drawn)
    yield DECODING(
        "draws follow their distribution",
        f"{(outside or [where])[0]}: tokens are drawn that should not be, or in other shares",
        source="definitions, recomputed in float64",
    ).holds(
        below(error, FAR) and not outside, error, f"total variation distance <= {FAR:g} over {DRAWS} draws"
    )
    best = sampling.choose(logits[None], sampling.GREEDY, sampling.GREEDY.generator(logits.device))
    yield DECODING(
        "greedy choice is argmax", "temperature 0 does not take the largest logit", source="definition"
    ).equal(int(best), int(logits.argmax()))
    plan = {"greedy": (0.0, None, None), "typical": (0.9, 0.95, None), "stress": (1.5, None, 10)}
    named = {mode: (how.temperature, how.top_p, how.top_k) for mode, how in snapshot.MODES.items()} == plan
    yield DECODING(
        "named modes are the plan's",
        "greedy, typical or stress means something else",
        source="config-95m, section 5E",
        weight=STRONG,
    ).holds(named, named, "greedy; 0.9 and top-p 0.95; 1.5 and top-k 10")
