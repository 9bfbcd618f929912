"""Minimal pairs: well made, scored as written down here, and told apart by a model that knows one side."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from bitnet.evaluate.grammar import MinimalPair, grammar_metrics, minimal_pairs, sentence_log_probs
from bitnet.nn.config import BitNetConfig
from bitnet.nn.transformer import BitNetTransformer
from bitnet.text.characters import CharacterTokenizer

LETTERS = "".join(sorted(set("".join(pair.right + pair.wrong for pair in minimal_pairs()))))
TOKENIZER = CharacterTokenizer(LETTERS, 64)


def model_of(seed: int = 0) -> BitNetTransformer:
    torch.manual_seed(seed)
    config = BitNetConfig(
        vocab_size=64,
        hidden_size=48,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        ffn_hidden_size=96,
        max_seq_length=48,
        activations="full",
    )
    return BitNetTransformer(config)


def test_the_pairs_are_different_and_of_every_kind_alike() -> None:
    pairs = minimal_pairs()
    assert len(set(pairs)) == len(pairs) == 193
    assert all(pair.right != pair.wrong for pair in pairs)
    assert set(Counter(pair.kind for pair in pairs).values()) == {24, 25}
    assert {pair.right for pair in pairs}.isdisjoint({pair.wrong for pair in pairs}), (
        "no sentence is right in one pair and wrong in another"
    )
    assert len({pair.kind for pair in pairs[:12]}) >= 5
    for pair in pairs:
        one, other = pair.right.split(), pair.wrong.split()
        changed = [place for place, (a, b) in enumerate(zip(one, other, strict=True)) if a != b]
        assert len(changed) == 1 or (len(changed) == 2 and Counter(one) == Counter(other)), pair


def test_a_sentence_scores_the_sum_of_its_tokens_however_long_its_neighbours_are() -> None:
    model = model_of()
    sentences = ["She ran to the park.", "I ran.", "The little rabbit ran away."]
    together = sentence_log_probs(model, TOKENIZER, sentences)
    for sentence, found in zip(sentences, together, strict=True):
        ids = torch.tensor([[TOKENIZER.eos_id, *TOKENIZER.encode(sentence)]])
        with torch.no_grad():
            expected = -F.cross_entropy(model(ids[:, :-1])[0], ids[0, 1:], reduction="sum")
        assert float(found) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.slow
def test_a_model_gets_the_sentences_that_it_learned_right_or_wrong() -> None:
    pairs = [pair for pair in minimal_pairs() if pair.kind == "agreement"]
    for learned, least, most in (("right", 0.9, 1.0), ("wrong", 0.0, 0.1)):
        model = model_of()
        rows = [[TOKENIZER.eos_id, *TOKENIZER.encode(getattr(pair, learned))] for pair in pairs]
        ids = torch.tensor([row + [TOKENIZER.pad_id] * (32 - len(row)) for row in rows])
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for _ in range(150):
            logits = model(ids[:, :-1])
            F.cross_entropy(
                logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=TOKENIZER.pad_id
            ).backward()
            optimizer.step()
            optimizer.zero_grad()
        metrics = grammar_metrics(model, TOKENIZER, pairs)
        assert least <= metrics["grammar"] == metrics["grammar_agreement"] <= most
        assert metrics["grammar_cases"] == 24


def test_equal_sentences_are_no_hit() -> None:
    metrics = grammar_metrics(model_of(), TOKENIZER, [MinimalPair("agreement", "I ran.", "I ran.")])
    assert metrics == {
        "grammar": 0.0,
        "grammar_cases": 1.0,
        "grammar_agreement": 0.0,
        "grammar_agreement_cases": 1.0,
    }
