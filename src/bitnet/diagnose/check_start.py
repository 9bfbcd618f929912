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
from bitnet.diagnose.finding import HINT, Check, Part
from bitnet.diagnose.subject import Subject
from bitnet.diagnose.trace import random_ids, weights_of
from bitnet.nn.config import BitNetConfig
from bitnet.nn.transformer import BitNetTransformer

START = Part("quantization", "docstring of nn/transformer.py; GPT-2, section 2.3; train.seed")
UNIFORM = Part("quantization", "a uniform guess; a loss of 164 was seen with embeddings of N(0, 1)")
STD, SIGMAS = 0.02, 6.0
ALIKE = 0.5
"""Correlation above which two matrices are the same one; independent ones of 512 entries reach 0.2."""
FEWEST, COMPARED = 64, 4096  # entries of a matrix that are compared
MOST = 160  # matrices compared with each other
STEP0_NATS = 0.5
"""How far the loss of a fresh model may be from ln(V). The seeds' broken start was 164; healthy ones here are
within 0.1."""


def beginning(subject: Subject) -> Iterator[Check]:
    """All checks of this file, on a model made anew."""
    fresh = subject.new_model(subject.config)
    weights = weights_of(fresh)
    parts = matrices(weights, subject.config)
    yield spread(parts, subject.config)
    yield differ(parts)

    ones = [name for name, weight in weights.items() if weight.dim() == 1 and not bool((weight == 1).all())]
    yield START("norm weights begin at one", "begin with other weights").none(
        ones, "norms with other weights"
    )
    again = weights_of(subject.new_model(subject.config))
    other = [name for name, weight in weights.items() if not torch.equal(weight, again[name])]
    yield START("the seed decides the beginning", "get other random numbers").none(
        other, "parameters that differ when made again"
    )
    yield from first_logits(fresh)


def matrices(weights: dict[str, Tensor], config: BitNetConfig) -> dict[str, Tensor]:
    """Every logical matrix by name: q, k, v and gate, up by themselves."""
    found: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if weight.dim() == 2 and name.startswith("blocks."):
            split = torch.split(weight, list(reference.matrix_rows(config, name)))
            found |= {f"{name}[{number}]": part for number, part in enumerate(split)}
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
    return START(
        "initial matrices have their spread", "its mean or deviation is not the documented one"
    ).below(gaps, 1.0, f"distance from mean 0 and the documented deviation, in {SIGMAS:g} sigma")


def differ(parts: dict[str, Tensor]) -> Check:
    """No two matrices are the same random numbers, nor one the other's multiple."""
    flat = {name: part.flatten()[:COMPARED].double() for name, part in list(parts.items())[:MOST]}
    long = {name: part for name, part in flat.items() if len(part) >= FEWEST}
    alike = {f"{one} and {two}": correlation(long[one], long[two]) for one, two in combinations(long, 2)}
    return START("initial matrices differ from each other", "both begin with the same numbers").below(
        alike or {"": 0.0}, ALIKE, "correlation"
    )


def correlation(one: Tensor, two: Tensor) -> float:
    """Magnitude of the correlation of two vectors, of the entries that both have."""
    count = min(len(one), len(two))
    a, b = one[:count] - one[:count].mean(), two[:count] - two[:count].mean()
    return abs(float(a @ b)) / max(float(a.norm() * b.norm()), 1e-30)


@torch.no_grad()
def first_logits(fresh: BitNetTransformer) -> Iterator[Check]:
    """A new model knows nothing, and is not sure of anything."""
    config = fresh.config
    ids = random_ids(config.vocab_size, 8, min(64, config.max_seq_length), fresh.device)
    logits = fresh(ids)[:, :-1]
    mask = torch.ones_like(ids[:, 1:], dtype=torch.bool)
    loss = float(reference.summed_loss(logits, ids[:, 1:], mask)) / mask.sum().item()
    uniform = math.log(config.vocab_size)
    sure = "the model begins sure of wrong answers: look at the initialisation of embeddings and head"
    yield UNIFORM("step-0 loss is ln(V)", sure).holds(
        abs(loss - uniform) < STEP0_NATS, loss, f"{uniform:.2f} +- {STEP0_NATS:g} nats/token"
    )
    spread = float(logits.float().std(dim=-1).mean())
    yield UNIFORM("logit spread at step 0", "logits begin too wide, or all equal", weight=HINT).within(
        spread, 1e-4, 2, "standard deviation"
    )
