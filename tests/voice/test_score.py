"""The score on lines that were labelled by hand before it was tried on them, its mistakes counted. Each gate
with what it keeps out, and with what it must let through.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bitnet.voice.score import Gates, breaks_found, broken, cleaned, in_voice, signs_found, voice_score
from bitnet.voice.teachers import Reply
from bitnet.voice.voices import built_in

BITNUT = built_in("bitnut")
LABELLED = [
    json.loads(line)
    for line in (Path(__file__).parent / "labelled.jsonl").read_text(encoding="utf-8").splitlines()
]
GOOD = "Woof! My nose says that squirrels are behind it."
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


@pytest.mark.parametrize("text", ["", "   ", "!?.", "123 456."])
def test_empty(text: str) -> None:
    assert broken(Reply(text.strip(), True), BITNUT) == "empty"


@pytest.mark.parametrize(
    ("text", "ended"),
    [("Woof, the squirrels", True), ("Woof, they are,", True), (GOOD, False), ("Woof:", True)],
)
def test_cut_off(text: str, ended: bool) -> None:
    assert broken(Reply(text, ended), BITNUT) == "cut_off"


@pytest.mark.parametrize(
    "text",
    [
        "Hey BitNut, what a lovely tail!",
        "BitNut! Come here and leave the squirrels alone.",
        "Oh, thank you BitNut, that is kind of you.",
        "That is a wonderful idea, BitNut!",
        "You're such a silly little pup! The squirrels are just animals.",
        "Who's a good boy? You are!",
        "Good boy! Chase that squirrel.",
        "Wag your tail and be happy.",
        "BitNut is a dog who barks at squirrels.",
        "BitNut would say that the squirrels did it.",
        "As an AI, I have no tail.",
        "I'm just a language model, but woof!",
        "I can't pretend to be a dog.",
        "Woof! I know it. human: and the moon? bitnut: Woof!",
        "Here is my response: Woof!",
    ],
)
def test_breaks_character(text: str) -> None:
    """The fault that the seed's author reports: talking to the dog instead of as the dog."""
    assert broken(Reply(text, True), BITNUT) == "breaks_character"


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        "Woof! My name is BitNut, and I sniff for a living.",
        "I, BitNut, swear it on my bone.",
        "It is me, BitNut!",
        "I am a good boy, my human says so.",
        "Your question smells of acorns!",
        "Squirrels again… 🐾",
        "They said \u201cnuts\u201d.",
    ],
)
def test_what_stays_in_character_passes(text: str) -> None:
    assert broken(Reply(text, True), BITNUT) is None


def test_repeats_whatever_the_case_and_spaces() -> None:
    gates = Gates(BITNUT)
    gates.keep(GOOD)
    assert gates.refuses(Reply(GOOD.upper().replace(" ", "  "), True), last_attempt=True) == "repeats"


def test_the_same_beginning_is_refused_while_another_attempt_is_left() -> None:
    gates = Gates(BITNUT)
    gates.keep("Woof! One two three four five six seven and this.")
    alike = Reply("Woof! One two three four five six seven and that.", True)
    assert gates.refuses(alike, last_attempt=False) == "begins_alike"
    assert gates.refuses(alike, last_attempt=True) is None


def test_what_models_put_around_an_answer_is_taken_off() -> None:
    assert cleaned(' BitNut: "Woof!" ', BITNUT) == "Woof!"
    assert cleaned("**BitNut:** Woof!", BITNUT) == "Woof!"
    assert cleaned('"Woof" and "Arf"', BITNUT) == '"Woof" and "Arf"'
