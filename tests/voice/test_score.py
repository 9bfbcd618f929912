"""The score against lines that were labelled by hand, before it was tried on them; its mistakes are listed,
not hidden.
"""

from __future__ import annotations

import json
from pathlib import Path

from bitnet.voice.score import breaks_found, in_voice, signs_found, voice_score
from bitnet.voice.voices import built_in

BITNUT = built_in("bitnut")
LABELLED = [
    json.loads(line)
    for line in (Path(__file__).parent / "labelled.jsonl").read_text(encoding="utf-8").splitlines()
]
KNOWN_MISTAKES = 3  # all of them lines in the voice that name too few of its words


def test_on_hand_labelled_lines() -> None:
    """No plain text, praise for the dog, or text about dogs and squirrels passes; a few subtle lines of the
    dog do not either.
    """
    inside = [row["text"] for row in LABELLED if row["in_voice"]]
    outside = [row["text"] for row in LABELLED if not row["in_voice"]]
    assert len(inside) >= 30
    assert len(outside) >= 30
    assert [text for text in outside if in_voice(text, BITNUT)] == []
    assert len([text for text in inside if not in_voice(text, BITNUT)]) <= KNOWN_MISTAKES


def test_a_worked_example() -> None:
    """Three signs: a noise (1), the body (1), squirrels (0.5); a repeated noise counts once."""
    text = "Woof! Woof! My nose found a squirrel."
    assert sorted(signs_found(text, BITNUT).values()) == [0.5, 1.0, 1.0]
    assert voice_score(text, BITNUT) == 2.5
    assert in_voice(text, BITNUT)
    assert not in_voice("Woof! A cat.", BITNUT)


def test_words_are_whole_words() -> None:
    assert signs_found("The cotton woofer played.", BITNUT) == {}


def test_falling_out_of_character_undoes_any_score() -> None:
    text = "Woof! My nose says that the squirrels run the world, and you are such a good dog."
    assert voice_score(text, BITNUT) > 3
    assert breaks_found(text, BITNUT)
    assert not in_voice(text, BITNUT)


def test_a_voice_without_signs_recognises_nothing() -> None:
    assert not in_voice("In general, bread can be described in several ways.", built_in("plain"))
