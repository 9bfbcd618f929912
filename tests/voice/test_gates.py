"""Each gate with what it keeps out, and with what it must let through."""

from __future__ import annotations

import pytest

from bitnet.voice.gates import Gates, broken, cleaned
from bitnet.voice.teachers import Reply
from bitnet.voice.voices import built_in

BITNUT = built_in("bitnut")
GOOD = "Woof! My nose says that squirrels are behind it."


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
