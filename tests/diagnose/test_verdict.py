"""What follows from findings: the part upstream is named, symptoms and consequences are not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from bitnet.diagnose import ngrams
from bitnet.diagnose.finding import HINT, PROOF, STRONG, SUSPECTS, Check, Part
from bitnet.diagnose.page import page
from bitnet.diagnose.run_checks import collect
from bitnet.diagnose.verdict import NEXT, TREE, judge


def check(suspect: Any, ok: bool = False, **more: Any) -> Check:
    name = more.pop("name", f"a check of {suspect}")
    return Check(
        name=name,
        suspect=suspect,
        ok=ok,
        value=1.0,
        expected="2",
        source="a test",
        detail="it is one",
        **more,
    )


def symptom(suspect: Any, weight: float = PROOF) -> Check:
    """A failed check that any broken part explains."""
    return Part(suspect, "a test", weight, direct=False)("a symptom", "it is one").holds(False, 1.0, "2")


def test_nothing_failed_is_healthy() -> None:
    verdict = judge([check("data", ok=True)] * 30)
    assert verdict.healthy
    assert verdict.suspect == "none"
    assert verdict.evidence == ()


def test_symptoms_do_not_outvote_a_direct_finding() -> None:
    """Shuffled data: nothing learns, the criteria are missed, the control fails too; but one check saw the
    data.
    """
    found = [check("data", weight=STRONG), *[symptom("training")] * 5, symptom("optimizer")]
    verdict = judge(found)
    assert verdict.suspect == "data"
    assert {one.suspect for one in verdict.explained} == {"training", "optimizer"}


def test_symptoms_alone_are_believed() -> None:
    assert judge([symptom("training", weight=HINT)]).suspect == "training"


def test_a_broken_forward_pass_explains_other_gradients() -> None:
    found = [
        check("quantization"),
        check("gradients", explained_by=frozenset({"quantization"})),
        check("gradients", explained_by=frozenset({"quantization"})),
    ]
    verdict = judge(found)
    assert verdict.suspect == "quantization"
    assert len(verdict.explained) == 2


def test_the_strongest_finding_wins_over_many_hints() -> None:
    assert judge([check("decoding", weight=PROOF), *[check("data", weight=HINT)] * 3]).suspect == "decoding"


def test_sureness_falls_with_doubt() -> None:
    sure, doubtful = judge([check("data")]), judge([check("data", weight=HINT), check("size", weight=HINT)])
    assert sure.words == "sure"
    assert doubtful.sureness < sure.sureness
    assert doubtful.others == ("size",)


names = st.sampled_from([name for name in SUSPECTS if name != "none"])


@given(
    st.lists(
        st.tuples(
            names, st.booleans(), st.sets(names), st.sampled_from([PROOF, STRONG, HINT]), st.booleans()
        ),
        max_size=12,
    )
)
def test_a_suspect_is_always_named_when_something_failed(
    drawn: list[tuple[Any, bool, set[Any], float, bool]],
) -> None:
    """Whatever explains what, even in a circle."""
    checks = [
        check(s, ok, explained_by=frozenset(by), weight=weight, direct=direct)
        for s, ok, by, weight, direct in drawn
    ]
    verdict = judge(checks)
    assert verdict.healthy == all(one.ok for one in checks)
    assert verdict.healthy or verdict.suspect in {one.suspect for one in checks if not one.ok}
    assert len(verdict.evidence) + len(verdict.explained) == sum(not one.ok for one in checks)
    assert page("x", checks, verdict)


def test_every_suspect_has_its_place_and_its_advice() -> None:
    assert set(TREE) | {"none"} == set(SUSPECTS) == set(NEXT)


def test_an_error_in_the_examined_code_is_a_finding() -> None:
    def broken() -> Iterator[Check]:
        yield check("data", ok=True, name="first")
        raise IndexError("index 40 is out of range")

    first, second = collect("the data", "data", broken)
    assert first.ok
    assert not second.ok
    assert "IndexError: index 40" in second.detail
    assert "after: first" in second.detail


def test_an_error_of_the_examination_is_no_finding() -> None:
    """ngrams.py is a file of the examination: that it fails says nothing about the data, and nothing is
    called healthy then.
    """

    def broken() -> Iterator[Check]:
        ngrams.shingles([1], 2)  # type: ignore[list-item]
        yield check("data", ok=True)

    (only,) = collect("the data", "data", broken)
    assert not only.examined
    assert "bitnet diagnose itself failed in" in only.detail
    assert "ngrams.py" in only.detail
    verdict = judge([only, *[check("data", ok=True)] * 30])
    assert (verdict.suspect, verdict.healthy) == ("none", False)
    assert verdict.to_json()["not_examined"] == ["the data can be examined"]
    assert "incomplete" in page("x", [only], verdict)
    assert judge([only, check("optimizer")]).suspect == "optimizer"


def test_an_unfinished_run_is_called_unfinished() -> None:
    """Not a hint of anything: nothing is broken, and how much is still to come is said."""
    going = judge([check("data", ok=True)] * 30, "40 of 720 updates")
    assert (going.suspect, going.healthy, going.words) == ("none", True, "unfinished")
    assert "unfinished (40 of 720 updates)" in page("x", [], going)
    assert "repeat the command" in going.next
    assert going.experiments == ()
    short = judge([symptom("training", weight=HINT)], "6 of 700 tokens")
    assert (short.suspect, short.words) == ("training", "unfinished")
    assert "training (unfinished)" in page("x", [], short)
    assert judge([check("data")], "40 of 720 updates").words == "sure"


def test_a_healthy_verdict_names_the_plans_next_experiments() -> None:
    text = page("x", [], judge([check("data", ok=True)] * 30), ["training row 0  2 + 2 = «4»"])
    for words in ("tinystories_2k", "--num-steps 4000000", "--variant 200m", "2 + 2 = «4»"):
        assert words in text
