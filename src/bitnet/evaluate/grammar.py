"""Does the model know English grammar? Minimal pairs: which of two sentences is more likely, the right one or
the wrong one?

The method is BLiMP's (Warstadt et al., arXiv:1912.00582): both sentences of a pair are the same but for one
fault, each is scored by the sum of its tokens' log probabilities, and the pair counts where the right one has
the higher sum. Guessing gives a half. BLiMP's own words are for adults; these pairs use the words of
children's stories, as Zorro does (Huebner et al., 2021).

    agreement    The dog was happy.           / The dog were happy.
    article      She saw an owl.              / She saw a owl.
    pronoun      Mom gave him a toy.          / Mom gave he a toy.
    infinitive   Tim wanted to eat.           / Tim wanted to ate.
    auxiliary    Tim did not eat.             / Tim did not ate.
    number       She liked these toys.        / She liked this toys.
    adjective    The big dog ran away.        / The dog big ran away.
    preposition  She ran to the park.         / She ran the to park.

What this does not measure: whether the sentences that the model writes are grammatical. That needs a parser
or a reader; a high share here is necessary for it and not sufficient. Capitals, ends of sentences and loops
in what it writes are in writing.py.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from bitnet.generate.decoder import Decoder
from bitnet.text.tokenizer import Tokenizer

PAIRS_AT_ONCE = 64
ANIMALS = ("dog", "cat", "bird", "bear", "frog", "duck", "boy", "girl", "rabbit", "friend", "cow", "horse")
THINGS = ("toy", "ball", "tree", "hat", "car", "flower", "book", "cake", "apple", "cookie", "game", "shoe")
MOODS = ("happy", "sad", "big", "small", "nice", "kind")
WITH_AN = (
    "apple",
    "owl",
    "egg",
    "ant",
    "orange",
    "elephant",
    "umbrella",
    "onion",
    "acorn",
    "animal",
    "old man",
    "ice cream",
)
WITH_A = ("dog", "ball", "tree", "hat", "car", "flower", "bird", "cake", "toy", "fish", "big bear", "red box")
CASES = (("He", "him"), ("She", "her"), ("They", "them"), ("We", "us"), ("I", "me"))
VERBS = (
    ("eat", "ate"),
    ("run", "ran"),
    ("see", "saw"),
    ("go", "went"),
    ("play", "played"),
    ("swim", "swam"),
    ("fly", "flew"),
    ("help", "helped"),
    ("jump", "jumped"),
    ("sing", "sang"),
    ("hide", "hid"),
    ("sleep", "slept"),
)
PLACES = tuple(
    """
    park house tree river beach garden store lake forest school door car
""".split()
)


class MinimalPair(NamedTuple):
    """Two sentences that differ in one fault. kind: what it is a fault of."""

    kind: str
    right: str
    wrong: str


def _pairs_of_words() -> Iterator[MinimalPair]:
    """Pairs in which one word has the wrong form."""
    for index, noun in enumerate(ANIMALS):
        mood = MOODS[index % len(MOODS)]
        yield MinimalPair("agreement", f"The {noun} was {mood}.", f"The {noun} were {mood}.")
        yield MinimalPair("agreement", f"The {noun}s were {mood}.", f"The {noun}s was {mood}.")
    for noun in WITH_AN:
        yield MinimalPair("article", f"She saw an {noun}.", f"She saw a {noun}.")
    for noun in WITH_A:
        yield MinimalPair("article", f"She saw a {noun}.", f"She saw an {noun}.")
    for subject, other in CASES:
        for did in ("ran to the park", "saw a big dog", "liked to play"):
            yield MinimalPair("pronoun", f"{subject} {did}.", f"{other.capitalize()} {did}.")
        wrong = subject if subject == "I" else subject.lower()
        for gave in ("Mom gave {} a toy.", "The dog ran after {}."):
            yield MinimalPair("pronoun", gave.format(other), gave.format(wrong))
    for base, past in VERBS:
        for before in ("Tim wanted to", "She loved to"):
            yield MinimalPair("infinitive", f"{before} {base}.", f"{before} {past}.")
        for before in ("Tim did not", "She could not"):
            yield MinimalPair("auxiliary", f"{before} {base}.", f"{before} {past}.")
    for noun in THINGS:
        yield MinimalPair("number", f"She liked this {noun}.", f"She liked these {noun}.")
        yield MinimalPair("number", f"She liked these {noun}s.", f"She liked this {noun}s.")


def _pairs_of_order() -> Iterator[MinimalPair]:
    """Pairs in which two words have changed places."""
    for noun in ANIMALS:
        for adjective in ("big", "little"):
            yield MinimalPair(
                "adjective", f"The {adjective} {noun} ran away.", f"The {noun} {adjective} ran away."
            )
    for place in PLACES:
        for walked in ("She ran", "They walked"):
            yield MinimalPair("preposition", f"{walked} to the {place}.", f"{walked} the to {place}.")


@cache
def minimal_pairs() -> tuple[MinimalPair, ...]:
    """All pairs, mixed, so that the first few are of several kinds; always in the same order."""
    found = [*_pairs_of_words(), *_pairs_of_order()]
    random.Random("minimal pairs").shuffle(found)
    return tuple(found)


def grammar_metrics(model: Decoder, tokenizer: Tokenizer, pairs: Sequence[MinimalPair]) -> dict[str, float]:
    """`grammar`, the share of pairs whose right sentence is likelier, and `grammar_<kind>`, each with its
    cases.

    Equal likelihoods count as wrong. Each sentence is scored as the beginning of a document.
    """
    sentences = [sentence for pair in pairs for sentence in (pair.right, pair.wrong)]
    likely = sentence_log_probs(model, tokenizer, sentences).tolist()
    hits: dict[str, list[bool]] = {"grammar": []}
    for pair, right, wrong in zip(pairs, likely[::2], likely[1::2], strict=True):
        hits["grammar"].append(right > wrong)
        hits.setdefault(f"grammar_{pair.kind}", []).append(right > wrong)
    metrics: dict[str, float] = {}
    for name, found in sorted(hits.items()):
        metrics |= {name: sum(found) / len(found), f"{name}_cases": float(len(found))}
    return metrics


@torch.no_grad()
def sentence_log_probs(model: Decoder, tokenizer: Tokenizer, sentences: Sequence[str]) -> Tensor:
    """Log probability of each sentence after an end-of-text token, in nats: float64 (N,), on the CPU."""
    rows = [[tokenizer.eos_id, *tokenizer.encode(sentence)] for sentence in sentences]
    parts = [
        _summed(model, rows[start : start + PAIRS_AT_ONCE], tokenizer.pad_id)
        for start in range(0, len(rows), PAIRS_AT_ONCE)
    ]
    return torch.cat(parts)


def _summed(model: Decoder, rows: Sequence[Sequence[int]], pad_id: int) -> Tensor:
    """The sums of one batch; rows are padded on the right, where a causal model does not look."""
    longest = max(map(len, rows))
    device = model.device
    padded = [[*row, *[pad_id] * (longest - len(row))] for row in rows]
    ids = torch.tensor(padded, device=device)  # (B, T + 1)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    real = torch.arange(1, longest, device=device) < lengths[:, None]  # (B, T): targets that are not padding

    log_probs = model(ids[:, :-1]).double().log_softmax(-1)  # (B, T, V)
    of_targets = log_probs.gather(-1, ids[:, 1:, None]).squeeze(-1)  # (B, T)
    return torch.where(real, of_targets, 0.0).sum(-1).cpu()
