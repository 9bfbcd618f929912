"""The form of a conversation, letter by letter."""

from __future__ import annotations

from bitnet.text.chat import Turn, conversation_ids, question
from corpora import small_tokenizer


def test_the_seeds_template() -> None:
    assert question("What is rain?") == "human: What is rain?\nbitnut:"
    assert question("What is rain?", "pirate") == "human: What is rain?\npirate:"


def test_every_turn_ends_with_the_end_of_text() -> None:
    tokenizer = small_tokenizer()
    ids, learned = conversation_ids([Turn("a", "b"), Turn("c", "d")], tokenizer, "bitnut")
    ends = [place for place, token in enumerate(ids) if token == tokenizer.eos_id]
    assert len(ends) == 2
    assert ends[-1] == len(ids) - 1
    assert all(learned[place] for place in ends)
    assert tokenizer.decode(ids[: ends[0]]) == "human: a\nbitnut: b"
    assert not any(learned[ends[0] + 1 : ids.index(tokenizer.eos_id, ends[0] + 1) - 2])
