"""A check in one call: what it compares, what it says should be, and what it inherits from its part."""

from __future__ import annotations

import math
from typing import Any

import pytest

from bitnet.diagnose.finding import PROOF, STRONG, SUSPECTS, Check, Part, below, worst

PART = Part("optimizer", "a test", STRONG, explained_by={"data"})
ASK = PART("name", "is off")


def seen(check: Check) -> tuple[bool, Any, str, str]:
    return check.ok, check.value, check.expected, check.detail


def test_a_check_inherits_from_its_part_what_it_does_not_say_itself() -> None:
    check = ASK.holds(True, 1, "one")
    assert (check.name, check.suspect, check.source, check.weight) == ("name", "optimizer", "a test", STRONG)
    assert check.explained_by == {"data"}
    other = PART("name", "is off", source="another", weight=PROOF, explained_by=()).holds(True, 1, "one")
    assert (other.suspect, other.source, other.weight) == ("optimizer", "another", PROOF)
    assert other.explained_by == frozenset()
    assert PART.source == "a test"


def test_every_other_part_explains_a_symptom() -> None:
    check = Part("training", "a test", direct=False)("name", "is off").holds(False, 1, "one")
    assert not check.direct
    assert check.explained_by == set(SUSPECTS) - {"training", "none"}


def test_equal() -> None:
    assert seen(ASK.equal(1234, 1234)) == (True, 1234, "1,234", "is off")
    assert seen(ASK.equal([1], [2])) == (False, [1], "[2]", "is off")
    assert ASK.equal(True, True).expected == "True"


def test_none_names_the_first_three() -> None:
    assert seen(ASK.none([], "layers")) == (True, 0, "0 layers", "is off")
    assert seen(ASK.none([1, 2, 3, 4], "layers")) == (False, 4, "0 layers", "is off: 1, 2, 3")


def test_below_takes_one_error_or_many() -> None:
    assert seen(ASK.below(1e-5, 1e-4)) == (True, 1e-5, "relative error <= 0.0001", "is off")
    assert seen(ASK.below({"a": 0.1, "b": 3.0}, 1.0, "nats")) == (False, 3.0, "nats <= 1", "b: is off")
    assert ASK.below({"a": 1.0}, 1.0).ok
    assert not ASK.below({}, 1.0).ok


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_above_every_limit(bad: float) -> None:
    assert not below(bad, math.inf)
    assert not ASK.below(bad, 1e9).ok
    assert worst({"a": 5.0, "b": bad})[1] == "b"
    assert ASK.below({"a": 5.0, "b": bad}, 1e9).detail == "b: is off"


def test_ranges_include_their_ends() -> None:
    assert [ASK.within(value, 1, 2).ok for value in (0.9, 1, 2, 2.1, math.nan)] == [
        False,
        True,
        True,
        False,
        False,
    ]
    assert [ASK.at_least(value, 2).ok for value in (1.9, 2, math.nan)] == [False, True, False]
    assert ASK.within(1.5, 1, 2, "turns").expected == "1..2 turns"
    assert ASK.at_least(1.5, 1, "of the rows").expected == ">= 1 of the rows"


def test_an_unknown_field_is_an_error() -> None:
    with pytest.raises(TypeError):
        PART("name", "is off", wieght=STRONG)
