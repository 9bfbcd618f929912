"""Every definition against Python itself, and the hold-out by enumeration."""

from __future__ import annotations

import itertools

import pytest

from bitnet.data.generated import held_out
from bitnet.experiments.python_subset.allowed_syntax import refusal, well_formed
from bitnet.experiments.python_subset.functions import (
    CASES_PER_KIND,
    CONSTANTS,
    END,
    SHORT,
    TEMPLATES,
    Function,
    evaluation_functions,
    function_of,
    short_functions,
    training_functions,
)
from bitnet.experiments.python_subset.sandbox import CallResult, Program, run_programs


@pytest.fixture(scope="module")
def evaluated() -> list[Function]:
    return evaluation_functions()


@pytest.fixture(scope="module")
def trained() -> list[Function]:
    return list(itertools.islice(training_functions(42), 20_000))


def source_of(function: Function) -> str:
    return function.example.prompt + function.example.answer


def judged(function: Function, source: str) -> bool:
    return function.is_right(run_programs([Program(source, function.name, function.calls)])[0])


def test_the_functions_of_the_plan_are_there() -> None:
    sources = {source_of(function) for function in short_functions()}
    assert f"def add(x, y):\n    return x + y\n{END}" in sources
    assert f"def count_to_ten():\n    for i in range(10):\n        print(i)\n{END}" in sources
    assert (
        f"def is_even(x):\n    if x % 2 == 0:\n        return True\n    else:\n        return False\n{END}"
        in sources
    )


def test_names_say_what_is_computed() -> None:
    """Worked examples, by hand."""
    assert function_of("then", "add", "mul", 3, 5, "x").meaning(1) == CallResult(20, ())
    assert function_of("if", "sub", "above", 3, 10, "x").meaning(10) == CallResult(10, ())
    assert function_of("if", "sub", "above", 3, 10, "x").meaning(11) == CallResult(8, ())
    assert function_of("is", "mod", "equal", 7, 2, "x").meaning(9) == CallResult(True, ())
    assert function_of("for", "mul", "add", 2, 10, "x").meaning(1) == CallResult(1024, ())
    assert function_of("while", "sub", "above", 7, 20, "x").meaning(40) == CallResult(19, ())
    assert function_of("sum", "mul", "add", 3, 4, "x").meaning() == CallResult(18, ())
    assert function_of("print", "div", "add", 2, 3, "x").meaning() == CallResult(None, ("0", "0", "1"))
    assert function_of("then", "add", "mul", 3, 5, "n").example == (
        "def add_3_then_mul_5(n):\n",
        f"    n = n + 3\n    return n * 5\n{END}",
    )


@pytest.mark.slow
def test_every_body_is_refused_by_nothing_and_computes_its_definition(evaluated: list[Function]) -> None:
    """The text is run, the definition is not text: two ways to the same results."""
    functions = [*evaluated, *short_functions()]
    assert all(
        refusal(source_of(function), function.name) is None and well_formed(source_of(function))
        for function in functions
    )
    programs = [Program(source_of(function), function.name, function.calls) for function in functions]
    outcomes = run_programs(programs)
    assert [f.name for f, outcome in zip(functions, outcomes, strict=True) if not f.is_right(outcome)] == []


def key(function: Function) -> str:
    """What is hashed, written again here: the name that has the constants in it, else the whole first
    line.
    """
    return function.name if any(map(str.isdigit, function.name)) else function.example.prompt


@pytest.mark.slow
def test_nothing_held_out_is_trained_on(evaluated: list[Function], trained: list[Function]) -> None:
    assert not any(held_out(key(function)) for function in trained)
    assert all(held_out(key(function)) for function in evaluated)
    names = {function.name for function in trained if function.kind != "words"}
    assert not names & {function.name for function in evaluated}


def test_the_evaluation_is_large_enough_and_even(evaluated: list[Function]) -> None:
    cases = evaluated
    assert len(cases) == len({function.example.prompt for function in cases}) >= 2000
    for kind in TEMPLATES:
        assert len({function.name for function in cases if function.kind == kind}) == CASES_PER_KIND
    assert {function.kind for function in cases} == {*TEMPLATES, "words"}


def test_every_kind_is_trained_as_often_and_so_is_every_argument(trained: list[Function]) -> None:
    kinds = [function.kind for function in trained]
    assert {kinds.count(kind) for kind in (*TEMPLATES, "words")} == {2500}
    assert {function.name for function in trained if function.kind == "words"} == set(SHORT)
    assert {argument for function in trained for argument in function.arguments} == set("xynabckm")


WRONG = [  # kind, f, g, what to change in the text, into what
    ("then", "add", "mul", "+ 13", "+ 12"),
    ("then", "div", "mod", "//", "%"),
    ("then", "sub", "add", "return x", "return 0 - x"),
    ("if", "add", "above", "> 20", ">= 20"),
    ("if", "add", "below", "< 20", "<= 20"),
    ("if", "add", "equal", "== 20", "== 21"),
    ("if", "add", "above", "return x\n", "return 20\n"),
    ("is", "add", "above", "> 20", ">= 20"),
    ("is", "sub", "below", "< 20", "<= 20"),
    ("is", "mul", "above", "> 20", "> 30"),
    ("is", "div", "above", "> 20", "> 19"),
    ("is", "add", "equal", "True", "1"),
    ("is", "div", "above", "x // 13 > 20", "x > 13 * 20"),
    ("for", "add", "add", "range(20)", "range(21)"),
    ("for", "div", "add", "range(20)", "range(0)"),
    ("while", "sub", "above", "> 20", ">= 20"),
    ("while", "add", "below", "    while", "    if"),
    ("while", "add", "below", "x + 13", "x + 0"),  # never ends
    ("sum", "mul", "add", "range(20)", "range(19)"),
    ("sum", "mul", "add", "    return total", "    print(total)"),
    ("print", "add", "add", "print(i + 13)", "print(i)"),
    ("print", "add", "add", "print(i + 13)\n", "print(i + 13)\n    return 0\n"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "f", "g", "old", "new"), WRONG)
def test_a_body_that_is_a_little_wrong_is_wrong(kind: str, f: str, g: str, old: str, new: str) -> None:
    """The calls have to include the numbers at which the fault shows."""
    function = function_of(kind, f, g, 13, 20, "x")
    source = source_of(function)
    assert source.count(old) == 1
    assert judged(function, source)
    assert not judged(function, source.replace(old, new))


@pytest.mark.parametrize(
    "body",
    [
        "return (x + 13) * 20",
        "y = x + 13\n    return 20 * y",
        "x += 13\n    if x > 5:\n        return x * 20\n    return x * 20",
    ],
)
def test_another_text_that_computes_the_same_is_right(body: str) -> None:
    function = function_of("then", "add", "mul", 13, 20, "x")
    assert judged(function, f"def add_13_then_mul_20(x):\n    {body}\n")


def test_every_template_ends_soon_enough_at_its_slowest() -> None:
    corners = [
        function_of(kind, f, g, 1, CONSTANTS[-1], "x") for kind, t in TEMPLATES.items() for f, g in t.choices
    ]
    outcomes = run_programs(
        [Program(source_of(function), function.name, function.calls) for function in corners]
    )
    assert all(function.is_right(outcome) for function, outcome in zip(corners, outcomes, strict=True))
