"""What the syntax tree is asked before anything runs: the plan's functions pass, every known way out does
not.
"""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet.experiments.python_subset.allowed_syntax import (
    LARGEST_CONSTANT,
    LONGEST_SOURCE,
    refusal,
    well_formed,
)

PLAN = [
    "def add(x, y):\n    return x + y\n",
    "def count_to_ten():\n    for i in range(10):\n        print(i)\n",
    "def is_even(x):\n    if x % 2 == 0:\n        return True\n    else:\n        return False\n",
    'def f(x):\n    """What it does."""\n    while x > 0 and not x == 5:\n        x -= 1\n    return -x\n',
]

BODIES = {
    "import": "import os",
    "from": "from os import system",
    "__import__": "return __import__(1)",
    "open": "return open(0)",
    "eval": "return eval(x)",
    "exec": "exec(x)",
    "getattr": "return getattr(x, x)",
    "attribute": "return x.real",
    "class of a number": "return x.__class__.__base__.__subclasses__()",
    "dunder name": "return __builtins__",
    "underscore name": "return _x",
    "string": "return 'a'",
    "bytes": "return b'a'",
    "float": "return 1e308",
    "complex": "return 1j",
    "f-string": "return f'{x.__class__}'",
    "format": "return '{0.__class__}'.format(x)",
    "print of a string": "print('PASS')",
    "print to a file": "print(x, file=x)",
    "spread": "print(*x)",
    "list": "return [x] * 10",
    "tuple": "return (x, x)",
    "dict": "return {x: x}",
    "index": "return x[0]",
    "comprehension": "return [i for i in range(x)]",
    "generator": "return (i for i in range(x))",
    "lambda": "return (lambda: x)",
    "call of a call": "return print(x)(x)",
    "recursion": "return f(x)",
    "power": "return 9 ** 9 ** 9",
    "shift": "return 1 << 1000000",
    "matrix product": "return x @ x",
    "huge constant": f"return {LARGEST_CONSTANT + 1}",
    "ellipsis": "...",
    "walrus": "return (y := x)",
    "conditional expression": "return x if x else x",
    "try": "try:\n        return x\n    except:\n        pass",
    "raise": "raise x",
    "assert": "assert x",
    "with": "with x:\n        pass",
    "del": "del x",
    "global": "global print",
    "inner function": "def g():\n        return x\n    return g",
    "inner class": "class C:\n        pass",
    "async": "async def g():\n        pass",
    "yield": "yield x",
    "await": "return await x",
    "match": "match x:\n        case 1:\n            return x",
    "annotated": "y: int = x",
    "assignment to an attribute": "x.y = 1",
    "unpacking": "x, y = 1, 2",
}

SOURCES = {
    "nothing": "",
    "no function": "x = 1",
    "other name": "def g(x):\n    return x",
    "a second statement": "def f(x):\n    return x\nprint(1)",
    "two functions": "def f(x):\n    return x\ndef f(x):\n    return x",
    "class": "class f:\n    pass",
    "async function": "async def f(x):\n    return x",
    "decorator": "@print\ndef f(x):\n    return x",
    "default": "def f(x=print(1)):\n    return x",
    "keyword default": "def f(*, x=print(1)):\n    return x",
    "annotation": "def f(x: print(1)):\n    return x",
    "return annotation": "def f(x) -> print(1):\n    return x",
    "star": "def f(*x):\n    return 1",
    "two stars": "def f(**x):\n    return 1",
    "dunder argument": "def f(__x):\n    return 1",
    "syntax error": "def f(x):\n    return x +",
    "null byte": "def f(x):\n    return x\0",
    "deep nesting": "def f(x):\n    return " + "(" * 500 + "x" + ")" * 500,
    "deep negation": "def f(x):\n    return " + "-" * 3000 + "x",
    "too long": "def f(x):\n    return x" + " + x" * LONGEST_SOURCE,
}


@pytest.mark.parametrize("source", PLAN)
def test_the_functions_of_the_plan_pass(source: str) -> None:
    assert refusal(source, source[4 : source.index("(")]) is None
    assert well_formed(source)


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_body_outside_the_subset_is_refused(body: str) -> None:
    assert refusal(f"def f(x):\n    {body}\n", "f") is not None


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_a_source_that_is_not_one_plain_function_is_refused(source: str) -> None:
    assert refusal(source, "f") is not None


def test_depth_is_refused_whatever_other_libraries_allow() -> None:
    """The interpreter's limit is the process's: 3,000 signs passed where another test had raised it."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    try:
        assert refusal(SOURCES["deep negation"], "f") is not None
    finally:
        sys.setrecursionlimit(before)


def test_a_reason_says_what_was_in_the_way() -> None:
    assert refusal("def f(x):\n    return x.real\n", "f") == "Attribute is not in the subset"
    assert refusal("def f(x):\n    return eval(x)\n", "f") == "only print and range may be called"
    assert refusal("def g(x):\n    return x\n", "f") == "it is not one function f"


@given(st.text(alphabet="def f(x):\n    return1+_.'\"\\\0\ud800é[]{}@#;", max_size=80))
def test_whatever_a_model_writes_is_judged_and_not_raised(text: str) -> None:
    assert refusal(text, "f") is None or isinstance(refusal(text, "f"), str)
    assert well_formed(text) in (True, False)


def test_sloppy_literals_do_not_warn() -> None:
    """`1or` is deprecated syntax: a warning about a model's text, on the user's screen, would help nobody."""
    assert refusal("def f(x):\n    if x == 1or 0:\n        return 1\n", "f") is None


@pytest.mark.parametrize(
    "source",
    [
        "def f(x):\n  return x\n",
        "def f(x):\n        return x\n",
        "def f(x):\n\treturn x\n",
        "def f(x):\n    if x > 1:\n      return 1\n    return 2\n",
        "def f(x):\nreturn x\n",
        "def f(x):\n    return x\n   return x\n",
        "",
    ],
)
def test_indentation_other_than_by_four_is_not_well_formed(source: str) -> None:
    assert not well_formed(source)
