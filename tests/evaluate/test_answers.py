"""Exact match counts an answer only with its end mark, and every kind by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from bitnet.evaluate.answers import Case, answer_all, exact_match
from bitnet.nn.transformer import BitNetTransformer
from bitnet.text.characters import CharacterTokenizer

TOKENIZER = CharacterTokenizer("0123456789+-= \n", 32)
CASES = [Case("add", "1+1=", "2\n"), Case("add", "2+2=", "4\n"), Case("subtract", "9-12=", "-3\n")]


def said(monkeypatch: pytest.MonkeyPatch, *texts: str) -> dict[str, Any]:
    """Let a model say these continuations, and return what it was asked."""
    asked: dict[str, Any] = {}

    def continued(model: object, prompts: Sequence[Sequence[int]], **words: Any) -> list[list[int]]:
        asked.update(words, prompts=[TOKENIZER.decode(prompt) for prompt in prompts])
        return [TOKENIZER.encode(text) for text in texts]

    monkeypatch.setattr("bitnet.evaluate.continuations.continue_prompts", continued)
    return asked


def test_each_kind_is_counted_with_its_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = said(monkeypatch, "2\n", "5\n", "-3\n")
    assert exact_match(None, TOKENIZER, CASES) == {  # type: ignore[arg-type]
        "exact_match": pytest.approx(2 / 3),
        "exact_match_cases": 3,
        "exact_match_add": 0.5,
        "exact_match_add_cases": 2,
        "exact_match_subtract": 1.0,
        "exact_match_subtract_cases": 1,
    }
    assert asked["prompts"] == ["1+1=", "2+2=", "9-12="]
    assert asked["max_new_tokens"] == 3, "the longest answer, its end mark included"
    assert asked["stop_id"] == TOKENIZER.encode("\n")[0]


@pytest.mark.parametrize("text", ["2", "22\n", "-2\n", "", "\n", " 2\n"])
def test_nearly_right_is_wrong(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    said(monkeypatch, text)
    assert exact_match(None, TOKENIZER, CASES[:1])["exact_match"] == 0  # type: ignore[arg-type]


def test_a_model_answers_each_case_as_if_it_were_alone(tiny_model: BitNetTransformer) -> None:
    """Prompts of unequal lengths in one call: no padding gets into an answer."""
    together = answer_all(tiny_model, TOKENIZER, CASES)
    longest = max(len(case.answer) for case in CASES)
    padded = [case._replace(answer="0" * (longest - 1) + "\n") for case in CASES]  # room for as many tokens
    alone = [answer_all(tiny_model, TOKENIZER, [case]) for case in padded]
    assert [[text] for text in together] == alone
