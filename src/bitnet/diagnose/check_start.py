"""How a new model begins: random, small, each matrix differently, and knowing nothing. Suspect: quantization.

The standard deviations are those that nn/transformer.py documents: 0.02 (GPT-2), projections that write to
the residual stream 1/sqrt(2L) of it, a tied embedding at most 1/C. Not here: what the model computes with its
weights (check_numerics.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations

import torch
from torch import Tensor

from bitnet.diagnose import reference
from bitnet.diagnose.finding import Check, Part
from bitnet.diagnose.subject import Subject
from bitnet.nn.config import BitNetConfig

START = Part(suspect="quantization", source="docstring of nn/transformer.py; GPT-2, section 2.3")
STD, SIGMAS = 0.02, 6.0
ALIKE = 0.5
"""Share of equal entries, or correlation, above which two matrices are the same one; independent ones of 512
entries reach 0.2."""
COMPARED = 4096  # entries of each matrix
MOST = 160  # matrices compared with each other


def beginning(subject: Subject) -> Iterator[Check]:
    """All checks of this file, on a model made anew."""
    fresh = subject.new_model(subject.config)
    weights = {name: weight.detach() for name, weight in fresh.named_parameters()}
    parts = matrices(weights, subject.config)
    yield spread(parts, subject.config)
    yield differ(parts)
    ones = [name for name, weight in weights.items() if weight.dim() == 1 and not bool((weight == 1).all())]
    yield START("norm weights begin at one", "begins otherwise").none(ones, "norms with other weights")
    yield from seeded(subject, weights)


def matrices(weights: dict[str, Tensor], config: BitNetConfig) -> dict[str, Tensor]:
    """Every logical matrix by name: q, k, v and gate, up by themselves."""
    found: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if weight.dim() == 2 and name.startswith("blocks."):
            for number, part in enumerate(torch.split(weight, list(reference.matrix_rows(config, name)))):
                found[f"{name}[{number}]"] = part
        elif weight.dim() == 2:
            found[name] = weight
    return found


def wanted_std(name: str, config: BitNetConfig) -> float:
    """The documented standard deviation of a matrix."""
    embedding = min(STD, 1 / config.hidden_size) if config.embeddings_tied else STD
    if name.startswith("token_embeddings"):
        return embedding
    to_stream = "out_proj" in name or ".down" in name
    return embedding / math.sqrt(2 * config.num_layers) if to_stream else STD


def spread(parts: dict[str, Tensor], config: BitNetConfig) -> Check:
    """Means of zero and the documented standard deviations, in units of what chance allows."""
    gaps: dict[str, float] = {}
    for name, part in parts.items():
        right, count = wanted_std(name, config), part.numel()
        std = abs(float(part.double().std()) / right - 1) * math.sqrt(2 * count)
        gaps[name] = max(std, abs(float(part.double().mean())) / right * math.sqrt(count)) / SIGMAS
    what = f"distance from mean 0 and the documented deviation, in {SIGMAS:g} sigma"
    return START("initial matrices have their spread", "is initialised with another mean or deviation").below(
        gaps, 1.0, what
    )


def differ(parts: dict[str, Tensor]) -> Check:
    """No two matrices are the same random numbers, nor one the other's multiple."""
    flat = {name: part.flatten()[:COMPARED].double() for name, part in list(parts.items())[:MOST]}
    alike: dict[str, float] = {}
    for (first, one), (second, two) in combinations(flat.items(), 2):
        count = min(len(one), len(two))
        a, b = one[:count] - one[:count].mean(), two[:count] - two[:count].mean()
        alike[f"{first} and {second}"] = (
            abs(float(a @ b)) / max(float(a.norm() * b.norm()), 1e-30) if count >= 64 else 0.0
        )
    return START("initial matrices differ from each other", "begin as the same numbers").below(
        alike or {"": 0.0}, ALIKE, "correlation"
    )


def seeded(subject: Subject, weights: dict[str, Tensor]) -> Iterator[Check]:
    """The seed decides how a model begins: the same again."""
    again = {name: weight.detach() for name, weight in subject.new_model(subject.config).named_parameters()}
    other = [name for name, weight in weights.items() if not torch.equal(weight, again[name])]
    yield START("the seed decides the beginning", "other random numbers", source="train.seed").none(
        other, "parameters that differ when made again"
    )
