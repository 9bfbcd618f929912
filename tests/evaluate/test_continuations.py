"""Continuations in the order of their prompts, as text and as ids."""

from __future__ import annotations

import pytest

from bitnet.evaluate.continuations import Mode, continuations, continued_ids
from bitnet.nn.transformer import BitNetTransformer
from bitnet.text.characters import CharacterTokenizer

TOKENIZER = CharacterTokenizer("0123456789+-*/()= abcdefgh\n", 32)
PROMPTS = ["1+", "12=", "3+", "a b c"]


@pytest.mark.parametrize("mode", ["greedy", "typical", "stress"])
def test_text_is_the_text_of_the_ids(tiny_model: BitNetTransformer, mode: Mode) -> None:
    texts = continuations(tiny_model, TOKENIZER, PROMPTS, end_mark="\n", mode=mode, max_new_tokens=6)
    ids = continued_ids(
        tiny_model,
        [TOKENIZER.encode(prompt) for prompt in PROMPTS],
        stop_id=TOKENIZER.encode("\n")[0],
        mode=mode,
        max_new_tokens=6,
    )
    assert texts == [TOKENIZER.decode(one) for one in ids]
    assert all(0 < len(one) <= 6 for one in ids)
    assert all("\n" not in text[:-1] for text in texts)


def test_the_end_mark_is_the_last_that_is_kept(tiny_model: BitNetTransformer) -> None:
    """Whatever the model says first is taken as the end mark: the continuation is that token alone."""
    (first, *_), *_ = continued_ids(tiny_model, [[4, 5]], stop_id=-1, max_new_tokens=5)
    assert continued_ids(tiny_model, [[4, 5]], stop_id=first, max_new_tokens=5) == [[first]]


def test_it_ends_where_the_model_ends(tiny_model: BitNetTransformer) -> None:
    """The last position that the model reads gives one token more, which nothing reads."""
    (continued,) = continued_ids(tiny_model, [[4] * 20], stop_id=-1, max_new_tokens=100)
    assert len(continued) == tiny_model.config.max_seq_length - 20 + 1
