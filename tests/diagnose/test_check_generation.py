"""Checks of whole generations on a tiny model, and decoders that are wrong in one way."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bitnet.diagnose import check_generation
from bitnet.diagnose.check_generation import continued, prompts_in_order, random_prompt, samples, seeds, stops
from bitnet.diagnose.finding import Check
from bitnet.generate.sampling import Sampling
from bitnet.nn.transformer import BitNetTransformer
from bitnet.text.characters import CharacterTokenizer

decode, snapshot = check_generation.decode, check_generation.snapshot


@pytest.fixture
def subject(tiny_model: BitNetTransformer) -> Any:
    task = SimpleNamespace(tokenizer=CharacterTokenizer("0123456789+= \n", 32), prompts=["1+1="])
    return SimpleNamespace(config=tiny_model.config, model=tiny_model, device=torch.device("cpu"), task=task)


def failed(checks: Iterable[Check]) -> set[str]:
    return {check.name for check in checks if not check.ok}


def test_the_decoder_here_does_what_it_is_asked(subject: Any) -> None:
    checks = [*seeds(subject), *stops(subject), *prompts_in_order(subject), *samples(subject, "1+1=")]
    assert len(checks) == 6
    assert failed(checks) == set()


def test_a_continuation_stays_within_the_models_positions(subject: Any) -> None:
    length = subject.config.max_seq_length
    assert len(random_prompt(subject, 10 * length)) == length // 2
    assert len(continued(subject, [5] * (length - 2), 10)) == 2
    assert len(continued(subject, [5, 6], 3)) == 3


def changed(call: Callable[..., Any], **fixed: Any) -> Callable[..., Any]:
    return lambda *words, **named: call(*words, **{**named, **fixed})


def test_a_seed_that_is_ignored_is_seen(subject: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    deaf = changed(decode.generate, sampling=Sampling(temperature=50.0, seed=1))
    monkeypatch.setattr(decode, "generate", deaf)
    assert failed(seeds(subject)) == {"seeds decide the draws"}


def test_a_stop_that_is_ignored_is_seen(subject: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "generate", changed(decode.generate, stop_ids=()))
    assert failed(stops(subject)) == {"generation ends at the stop token"}


def test_answers_in_another_order_are_seen(subject: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = decode.continue_prompts
    monkeypatch.setattr(decode, "continue_prompts", lambda *words, **named: real(*words, **named)[::-1])
    assert failed(prompts_in_order(subject)) == {"answers belong to their prompts"}


def test_a_sample_with_another_entropy_is_seen(subject: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = snapshot.snapshot

    def certain(*words: Any, **named: Any) -> dict[str, Any]:
        row = real(*words, **named)
        row["logits_first_10"][0]["entropy"] = 0.0
        return row

    monkeypatch.setattr(snapshot, "snapshot", certain)
    assert failed(samples(subject, "1+1=")) == {"samples are recorded as they are"}
