"""Exact match: does the greedy continuation of a prompt equal the one right answer, end mark included?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from bitnet.evaluate.continuations import continuations
from bitnet.generate.decoder import Decoder
from bitnet.text.tokenizer import Tokenizer


class Case(NamedTuple):
    """kind groups cases in the metrics; answer ends with the end mark, one token."""

    kind: str
    prompt: str
    answer: str


def answer_all(model: Decoder, tokenizer: Tokenizer, cases: Sequence[Case]) -> list[str]:
    """Greedy answers in the order of the cases, with the end mark where the model produced it."""
    end_mark = cases[0].answer[-1]
    assert all(case.answer.endswith(end_mark) for case in cases), "all answers end with the same mark"
    longest = max(len(tokenizer.encode(case.answer)) for case in cases)
    prompts = [case.prompt for case in cases]
    return continuations(model, tokenizer, prompts, end_mark=end_mark, max_new_tokens=longest)


def exact_match(model: Decoder, tokenizer: Tokenizer, cases: Sequence[Case]) -> dict[str, float]:
    """exact_match and exact_match_<kind>, shares from 0 to 1, each with its number of cases."""
    right: dict[str, list[bool]] = defaultdict(list)
    for case, answer in zip(cases, answer_all(model, tokenizer, cases), strict=True):
        right[case.kind].append(answer == case.answer)
    in_all = [hit for kind in right.values() for hit in kind]
    return shares(
        {"exact_match": in_all, **{f"exact_match_{kind}": hits for kind, hits in sorted(right.items())}}
    )


def shares(hits: Mapping[str, Sequence[bool]]) -> dict[str, float]:
    """The share of hits under each name, from 0 to 1, and beside it the number of cases, NAME_cases."""
    metrics: dict[str, float] = {}
    for name, outcomes in hits.items():
        metrics |= {name: sum(outcomes) / len(outcomes), f"{name}_cases": float(len(outcomes))}
    return metrics
