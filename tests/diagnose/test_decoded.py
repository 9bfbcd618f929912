"""Rows as text: what is learned is marked, padding is left out, nothing is executed."""

from __future__ import annotations

import torch

from bitnet.data.stream import Batch
from bitnet.diagnose.decoded import marked
from bitnet.text.characters import CharacterTokenizer


def test_scored_targets_stand_in_marks() -> None:
    tokenizer = CharacterTokenizer("0123456789+= \n\x1b", 32)
    ids = torch.tensor([[*tokenizer.encode("2+3=5\n"), 0, 0]])
    mask = torch.tensor([[False, False, False, True, True, False, False]])
    assert marked(Batch(ids[:, :-1], ids[:, 1:], mask), 0, tokenizer) == "2+3=«5\\n»"


def test_the_end_of_text_is_named_and_escapes_are_shown() -> None:
    tokenizer = CharacterTokenizer("0123456789+= \n\x1b", 32)
    ids = torch.tensor([[*tokenizer.encode("1"), tokenizer.eos_id, *tokenizer.encode("\x1b2")]])
    assert (
        marked(Batch(ids[:, :-1], ids[:, 1:], torch.ones(1, 3, dtype=torch.bool)), 0, tokenizer)
        == "1«<end>\\x1b2»"
    )
