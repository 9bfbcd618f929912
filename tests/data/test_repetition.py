"""Rows with a sentence said again: which one, where it says so, and what becomes of the rest."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bitnet.data.repetition import MOST_TURNS, SENTENCE_TOKENS, RepeatedSentences, sentence_ends
from bitnet.data.stream import Batch, concatenate, shifted
from bitnet.errors import ConfigError
from corpora import small_tokenizer, stories

TOKENIZER = small_tokenizer()
T = 96


class Stories:
    """Row n begins at the n-th of many stories, each followed by the end of a document."""

    def __init__(self) -> None:
        self.documents = [[*TOKENIZER.encode(text), TOKENIZER.eos_id] for text in stories(60)]

    def rows(self, numbers: NDArray[np.int64]) -> Batch:
        tokens = np.stack([np.concatenate([self.documents[(n + i) % 60] for i in range(12)])[: T + 1] for n in numbers.tolist()])
        return shifted(tokens, np.ones(tokens.shape, dtype=bool))

    def epochs(self, rows: int) -> float:
        return rows / 60

    def fingerprint(self) -> dict[str, Any]:
        return {"dataset_name": "stories"}


def repeated(share: float = 1.0, seed: int = 7) -> RepeatedSentences:
    return RepeatedSentences(Stories(), TOKENIZER, share=share, seed=seed)


def whole(batch: Batch) -> NDArray[np.int64]:
    """The windows that a batch was made of. (B, T + 1)."""
    return torch.cat((batch.input_ids, batch.targets[:, -1:]), dim=1).numpy()


def test_without_what_is_said_again_a_row_is_the_text_as_it_was() -> None:
    numbers = np.arange(60)
    plain, batch = whole(Stories().rows(numbers)), repeated().rows(numbers)
    assert batch.repeats is not None
    assert int((batch.repeats > 0).any(dim=1).sum()) >= 55  # nearly every row has a sentence that fits
    for row, tokens in enumerate(whole(batch)):
        again = np.concatenate(([False], batch.repeats[row].numpy() > 0))
        kept = tokens[~again]
        assert kept.tolist() == plain[row, : len(kept)].tolist()


def test_repeats_point_at_the_same_words_one_turn_earlier() -> None:
    batch = repeated().rows(np.arange(60))
    assert batch.repeats is not None
    turns_seen = set()
    for targets, back, scored in zip(batch.targets, batch.repeats, batch.loss_mask, strict=True):
        assert torch.equal(scored, back == 0)
        places = (back > 0).nonzero().flatten().tolist()
        if not places:
            continue
        period = int(back[places[0]])
        assert places == list(range(places[0], places[-1] + 1))
        assert set(back[places].tolist()) == {period}
        assert [int(targets[place]) for place in places] == [int(targets[place - period]) for place in places]
        assert SENTENCE_TOKENS[0] <= period <= SENTENCE_TOKENS[1]
        sentence = TOKENIZER.decode(targets[places[0] - period : places[0]].tolist()).strip()
        assert sentence.endswith(".")
        assert TOKENIZER.eos_id not in targets[places].tolist()
        if places[-1] < T - 1:
            turns_seen.add(len(places) / period)
    assert turns_seen == set(range(1, MOST_TURNS + 1))


def test_a_row_depends_on_seed_and_number_alone() -> None:
    numbers = np.array([5, 3, 59])
    together = repeated().rows(numbers)
    assert together.equals(concatenate([repeated().rows(numbers[i : i + 1]) for i in range(3)]))
    assert not together.equals(repeated(seed=8).rows(numbers))


def test_the_share_is_that_of_the_rows() -> None:
    rows = repeated(share=0.25).rows(np.arange(400))
    assert rows.repeats is not None
    assert 0.15 < float((rows.repeats > 0).any(dim=1).float().mean()) < 0.35
    with pytest.raises(ConfigError, match=r"share of rows with a repeated sentence is 1\.5; it must be above 0 and at most 1"):
        repeated(share=1.5)


def test_text_without_sentences_stays_as_it_is() -> None:
    class Words(Stories):
        def rows(self, numbers: NDArray[np.int64]) -> Batch:
            tokens = np.tile(np.array(TOKENIZER.encode("the moon and the dog "))[:8], (len(numbers), 12))
            return shifted(tokens, np.ones(tokens.shape, dtype=bool))

    batch = RepeatedSentences(Words(), TOKENIZER, share=1.0, seed=1).rows(np.arange(4))
    assert batch.repeats is not None
    assert not batch.repeats.any()
    assert batch._replace(repeats=None).equals(Words().rows(np.arange(4)))


def test_full_stops_with_and_without_quotes_end_sentences() -> None:
    ends = sentence_ends(TOKENIZER)
    (stop,) = TOKENIZER.encode(".")
    assert ends[stop]
    assert not ends[TOKENIZER.eos_id]
    assert not any(ends[index] for index in TOKENIZER.encode("the moon"))


def test_the_fingerprint_says_so() -> None:
    assert repeated(share=0.5).fingerprint() == {"dataset_name": "stories", "repeated_sentences": 0.5}
    assert repeated().epochs(120) == 2.0
