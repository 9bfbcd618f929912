"""The figures about writing on texts whose faults are known."""

from __future__ import annotations

import pytest

from bitnet.evaluate import writing

STORY = 'Once upon a time there was a boy named Tim. "Look at the big tree!" said Tim. He wanted to climb it.'
KNOWN = writing.vocabulary([STORY])


def test_good_writing_gets_full_marks() -> None:
    metrics = writing.writing_metrics([STORY], KNOWN)
    for name in ("sentences_ended", "sentences_capitalised", "known_words"):
        assert metrics[name] == 1.0, name
    assert metrics["sentences_ended_cases"] == 4
    assert metrics["repeating"] == metrics["soup"] == metrics["repeated_4grams"] == 0.0
    assert metrics["known_words_cases"] == 22


@pytest.mark.parametrize("text", ["the the the the the the", "He ran and ran and said no no no to it."])
def test_the_plans_first_broken_pattern(text: str) -> None:
    assert writing.repeats_a_word(text)
    assert not writing.repeats_a_word("It was very, very big. Big dogs ran.")


def test_the_plans_second_broken_pattern() -> None:
    assert writing.is_soup("xkjq mlp zzz aaa qwe", KNOWN)
    assert writing.is_soup("!!! ... 123", KNOWN)
    assert not writing.is_soup(STORY, KNOWN)
    assert writing.writing_metrics(["xkjq mlp zzz aaa qwe"], KNOWN)["known_words"] == 0.0


def test_repeated_sequences_are_counted_as_shares() -> None:
    """Nine words make six sequences of four; the second half repeats two of them."""
    assert writing.repeated_4grams("a b c d e a b c d e") == pytest.approx(2 / 7)
    assert writing.repeated_4grams("a b c") == 0.0


def test_a_last_sentence_that_was_cut_is_no_error_but_a_missing_end_inside_is() -> None:
    cut = writing.writing_metrics(["He ran. He wanted to"], KNOWN)
    assert (cut["sentences_ended"], cut["sentences_ended_cases"]) == (1.0, 1.0)
    broken = writing.writing_metrics(["He ran home\n\nHe sat down."], KNOWN)
    assert broken["sentences_ended"] == 0.5


def test_small_letters_at_the_beginning_are_found_but_not_after_speech() -> None:
    assert writing.writing_metrics(["he ran. He sat."], KNOWN)["sentences_capitalised"] == 0.5
    assert writing.writing_metrics(['"Run!" said Tim. He ran.'], KNOWN)["sentences_capitalised"] == 1.0


def test_the_first_sentence_may_begin_in_the_prompt() -> None:
    alone = writing.writing_metrics([" was a dog. It ran."], KNOWN)
    with_prompt = writing.writing_metrics([" was a dog. It ran."], KNOWN, prompts=["There"])
    assert alone["sentences_capitalised"] == 0.5
    assert with_prompt["sentences_capitalised"] == 1.0
    assert alone["known_words_cases"] == with_prompt["known_words_cases"] == 5


def test_nothing_to_judge_is_an_error() -> None:
    with pytest.raises(ValueError, match="no samples"):
        writing.writing_metrics([], KNOWN)
    assert writing.writing_metrics([""], KNOWN)["soup"] == 1.0
