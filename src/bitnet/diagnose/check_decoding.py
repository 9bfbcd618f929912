"""Does generation do what it is asked: the model's own next tokens, chosen by the rule that was named?
Suspect: decoding.

Cached steps are compared with the model's own logits for the whole prefix, so that a wrong model decodes
"right" here; choosing is compared with definitions (check_sampling.py), and so is what is generated as a
whole (check_generation.py). A decoder that fails here prints garbage whatever the model has learned.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from bitnet.diagnose import check_generation, check_sampling
from bitnet.diagnose.finding import Check, Part
from bitnet.diagnose.subject import Subject, copy_of
from bitnet.diagnose.trace import made_loud, off, random_ids
from bitnet.diagnose.twin import KINDS, VOCABULARY, twin_of
from bitnet.generate import decode
from bitnet.nn.transformer import BitNetTransformer

CACHED, LOUD_CACHED = 1e-2, 0.05
"""Relative error between cached and whole logits: equal products in another order, and now and then a value
on the edge of a code. Where attention is made loud, so that a wrong position shows, such a value weighs more;
a wrong position moves the logits by 0.2."""
LAST, PIECE = 12, 24  # tokens decoded one by one at the end of a row; a twin's prompt
LONGEST_TRIED = 1 << 14
LIKELY = 0.05  # standard deviations that the chosen logit may be below the largest
DECODING = Part(
    "decoding", "the model's own logits for the whole prefix", explained_by=frozenset({"quantization"})
)


def decoding(subject: Subject) -> Iterator[Check]:
    """All checks of this file."""
    yield from cache(subject)
    yield from late_positions(subject)
    yield from greedy(subject)
    yield from check_sampling.distributions()
    yield from check_generation.generation(subject)


def prompt_of(subject: Subject, rows: int, tokens: int) -> Tensor:
    """Random ids (rows, tokens); fewer tokens where the model has few positions."""
    tokens = min(tokens, subject.config.max_seq_length // 2)
    return random_ids(subject.config.vocab_size, rows, tokens, subject.device)


@torch.no_grad()
def cache(subject: Subject) -> Iterator[Check]:
    """Prompt in one piece, in two, and token by token: always the logits of the whole. Once more where
    attention is loud.
    """
    ids = prompt_of(subject, 3, 24)
    loud = made_loud(copy_of(subject, subject.model))
    for kind, model, limit in (("", subject.model, CACHED), (", loud attention", loud, LOUD_CACHED)):
        wrong = "keys, values or positions in the cache are wrong"
        yield DECODING(f"cached decoding equals full recomputation{kind}", wrong).below(
            _cached_errors(model, ids), limit
        )


def _cached_errors(model: BitNetTransformer, ids: Tensor) -> dict[str, float]:
    """How far cached logits are from whole ones, by the way that they were computed. ids: (3, T)."""
    whole, length = model(ids), ids.shape[1]
    errors: dict[str, float] = {}
    ways = {
        "in one piece": [0, length],
        "in two pieces": [0, length // 2, length],
        "token by token": [*range(length + 1)],
    }
    for way, cuts in ways.items():
        store = model.new_cache(len(ids), length)
        parts = [model(ids[:, begin:end], store) for begin, end in pairwise(cuts)]
        errors[way] = off(torch.cat(parts, dim=1), whole)

    store = model.new_cache(len(ids), length)
    model(ids[:, :-1], store)
    store.select(torch.tensor([2, 0], device=ids.device))
    errors["after dropping a row"] = off(model(ids[[2, 0], -1:], store)[:, -1], whole[[2, 0], -1])

    store = model.new_cache(len(ids), length)
    model(ids[:, :-4], store)
    rows = torch.tensor([1, 1, 0], device=ids.device)
    errors["after branching"] = off(model(ids[rows, -4:], store.branch(rows, 4)), whole[rows, -4:])
    return errors


@torch.no_grad()
def late_positions(subject: Subject) -> Iterator[Check]:
    """Up to the last position that the model has: the examined model's last tokens, and a twin in small
    pieces all the way.

    Nothing for models of more than LONGEST_TRIED positions, whose attention over all of them takes minutes to
    days.
    """
    length = subject.config.max_seq_length
    if length > LONGEST_TRIED:
        return
    model = made_loud(copy_of(subject, subject.model))
    last = random_ids(subject.config.vocab_size, 1, length, subject.device)
    errors = {"the last tokens": _pieces(model, last, max(length - LAST, 1), LAST)}
    twin = twin_of(subject, KINDS[0])
    ids = random_ids(VOCABULARY, 2, twin.config.max_seq_length, subject.device)
    errors["a twin in small pieces"] = _pieces(twin.model, ids, PIECE, PIECE)
    wrong = "keys, values or positions are wrong late in a row"
    yield DECODING("cached decoding equals full recomputation, to the last position", wrong).below(
        errors, LOUD_CACHED
    )
    room = min(4, length - 1)
    made = decode.generate(model, last[:, : length - room], max_new_tokens=10 * length).shape[1]
    other = "generation stops before the model's length is used, or goes beyond it"
    yield DECODING("generation goes on to the last position", other, explained_by=()).equal(made, length + 1)


def _pieces(model: BitNetTransformer, ids: Tensor, first: int, last: int) -> float:
    """Error of cached logits: a prompt of `first` tokens, then pieces of 1 to 7, and the last `last` tokens
    one by one.
    """
    whole = model(ids)
    store = model.new_cache(len(ids), ids.shape[1])
    parts, place, size = [model(ids[:, :first], store)], first, 0
    while place < ids.shape[1]:
        size = 1 if place >= ids.shape[1] - last else size % 7 + 1
        parts.append(model(ids[:, place : place + size], store))
        place += size
    return off(torch.cat(parts, dim=1), whole)


@torch.no_grad()
def greedy(subject: Subject) -> Iterator[Check]:
    """What `generate` returns greedily is the prompt and the argmax of the whole prefix, step by step, up to
    the model's length.
    """
    model = made_loud(copy_of(subject, subject.model))
    ids = prompt_of(subject, 2, 8)
    length = ids.shape[1]
    count = min(16, model.config.max_seq_length - length)
    out = decode.generate(model, ids, max_new_tokens=count)
    gaps, errors = [], {}
    kept = out.shape == (2, length + count) and torch.equal(out[:, :length], ids)
    if kept:
        scores = model(out[:, :-1])[:, length - 1 :].double()  # (2, count, V)
        chosen = scores.gather(-1, out[:, length:].unsqueeze(-1)).squeeze(-1)
        spread = scores.std(dim=-1).clamp(min=1e-9)
        gaps = ((scores.max(dim=-1).values - chosen) / spread).flatten().tolist()

    for row, prompt in enumerate(ids.tolist()):
        said = decode.stream(model, prompt, max_new_tokens=min(4, count))
        for position, (new, logits) in enumerate(said):
            whole = model(out[row : row + 1, : length + position])[0, -1]
            errors[f"row {row}, position {position}"] = off(logits, whole)
            if new != int(logits.argmax(-1)):
                gaps.append(math.inf)

    other = "another token than the most likely is taken, or the prompt is changed"
    yield DECODING("greedy takes the most likely token", other).below(
        max(gaps, default=math.inf), LIKELY, "standard deviations below the largest logit"
    )
    yield DECODING("streamed logits are the model's", "the decoder reads other logits").below(
        errors, LOUD_CACHED
    )
