"""From logits to the next token: greedy, temperature, top-k, top-p (arXiv:1904.09751)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bitnet.bounds import MOST_ENTRIES, SEEDS, within
from bitnet.errors import ConfigError, NotFiniteError
from bitnet.files import stable_number

if TYPE_CHECKING:
    import torch
    from torch import Tensor

NO_DISTRIBUTION = (
    "the model's logits are NaN or infinite, so there is no next token to choose; its weights are broken: "
    "use an earlier checkpoint (RUN/checkpoints/step_NNNNNN), or look for the cause with bitnet diagnose"
)
COLDEST, HOTTEST = 0.001, 1000.0  # logits divided by less overflow; by more, nothing is left of them


@dataclass(frozen=True)
class Sampling:
    """temperature 0 is greedy; top_k and top_p of None keep every token."""

    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.temperature == 0 or COLDEST <= self.temperature <= HOTTEST):
            raise ConfigError(
                f"temperature is {self.temperature}; it must be 0 (greedy) or between {COLDEST} and "
                f"{HOTTEST:g}"
            )
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        within("top_k", self.top_k, 1, MOST_ENTRIES)
        within("seed", self.seed, *SEEDS)

    def of_text(self, number: int) -> Sampling:
        """The same with a seed of its own for each of several texts; the first has this one."""
        return replace(self, seed=stable_number(f"{self.seed}|{number}", size=4)) if number else self

    def generator(self, device: torch.device) -> torch.Generator:
        """A random source of its own, so that sampling never disturbs training."""
        import torch

        return torch.Generator(device).manual_seed(self.seed)


GREEDY = Sampling()
# The seeds' other two decoding modes (config-95m, section 5E).
TYPICAL = Sampling(temperature=0.9, top_p=0.95)
STRESS = Sampling(temperature=1.5, top_k=10)


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """The distribution that is sampled from: temperature, then top-k, then top-p. (B, V) -> (B, V)."""
    import torch

    logits = logits.float()
    if sampling.temperature == 0:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)

    logits = logits / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        smallest = logits.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, -math.inf)

    probs = logits.softmax(-1)
    if sampling.top_p is not None:
        ordered, index = probs.sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered  # a token stays while those above it hold less than top_p
        probs = probs.scatter(-1, index, ordered.masked_fill(before >= sampling.top_p, 0.0))
        probs = probs / probs.sum(-1, keepdim=True)
    return probs


def choose(logits: Any, sampling: Sampling, generator: torch.Generator | None) -> Any:
    """Next ids. logits: (B, V), a tensor or a NumPy array. Returns int64 (B,), of the same kind where it is
    greedy and else a tensor. Raises NotFiniteError where a row has no distribution.
    """
    refuse_broken(logits)
    if sampling.temperature == 0:
        return logits.argmax(-1)
    import torch

    logits = torch.as_tensor(logits)
    return torch.multinomial(probabilities(logits, sampling), 1, generator=generator).squeeze(-1)


def refuse_broken(logits: Any) -> None:
    """Raise NotFiniteError where a row's largest logit is NaN or infinite. logits: (..., V).

    A single -inf only excludes a token. A tensor or a NumPy array.
    """
    if isinstance(logits, np.ndarray):
        finite = np.isfinite(logits.max(-1)).all()
    else:
        finite = logits.amax(-1).isfinite().all()
    if not bool(finite):  # the largest of a row with a NaN is that
        raise NotFiniteError(NO_DISTRIBUTION)
