"""The functions of the Python subset: how each is written, what it means, and which are held out.

A name is a specification, as in `add_3_then_mul_5` or `is_mod_7_equal_2`. Most carry two operations and two
constants, in seven kinds of function. An eighth kind, `words`, has the short ones of the plan (`add`,
`is_even`, `count_to_ten`). Not here: how a model's text is judged (task.py).
"""

from __future__ import annotations

import functools
import itertools
import operator
import random
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from bitnet.data.generated import Example, held_out
from bitnet.experiments.python_subset.sandbox import CallResult, Outcome

END = "\f"  # a form feed between functions, as PEP 8 has it between sections; Python reads it as white space
INDENT = "    "
ARGUMENTS = "xynabckm"
CONSTANTS = range(1, 51)
CASES_PER_KIND = 320

Operation = Callable[[int, int], int]
Meaning = Callable[..., CallResult]
OPERATORS: dict[str, tuple[str, Operation]] = {
    "add": ("+", operator.add),
    "sub": ("-", operator.sub),
    "mul": ("*", operator.mul),
    "div": ("//", operator.floordiv),
    "mod": ("%", operator.mod),
}
COMPARISONS: dict[str, tuple[str, Operation]] = {
    "above": (">", operator.gt),
    "below": ("<", operator.lt),
    "equal": ("==", operator.eq),
}
SIGNS = OPERATORS | COMPARISONS


class Function(NamedTuple):
    """A specification: how it is written, and what it means. numbers: the constants, where its corners
    are.
    """

    kind: str
    name: str
    arguments: tuple[str, ...]
    body: tuple[str, ...]
    meaning: Meaning
    numbers: tuple[int, ...] = ()

    @property
    def example(self) -> Example:
        """As text: the first line, then the body."""
        body = "".join(f"{INDENT}{line}\n" for line in self.body)
        return Example(f"def {self.name}({', '.join(self.arguments)}):\n", body + END)

    @property
    def kept_back(self) -> bool:
        """Whether it belongs to the evaluation."""
        return held_out(self.name if self.numbers else self.example.prompt)

    @property
    def calls(self) -> list[tuple[int, ...]]:
        """Arguments to try it on: some numbers, and those where its comparisons and divisions turn."""
        if len(self.arguments) != 1:
            return list(itertools.product((-3, 0, 1, 2, 7, 20), repeat=len(self.arguments)))
        tried = {-50, -7, -1, 0, 1, 2, 3, 10, 33, 64, 100}
        if self.numbers:
            a, b = self.numbers
            tried |= {
                corner + by for corner in (a, b, a + b, b - a, b // a, a * b, a * b + a) for by in (-1, 0, 1)
            }
        return [(number,) for number in sorted(tried)]

    def is_right(self, outcome: Outcome) -> bool:
        """Whether a program that was called with `calls` did what this one means, to the type of its
        results.
        """
        if outcome.results is None:
            return False
        return all(
            self.meaning(*call).same_as(result)
            for call, result in zip(self.calls, outcome.results, strict=True)
        )


class Template(NamedTuple):
    """One kind of function: f and g are operations or comparisons, a and b constants, x the argument."""

    name: str
    body: tuple[str, ...]
    choices: Sequence[tuple[str, str]]
    """The pairs (f, g) there are."""
    meaning: Callable[[Operation, Operation, int, int], Meaning]


def gives(value: int) -> CallResult:
    """A call that returns and prints nothing."""
    return CallResult(value, ())


def prints(numbers: Sequence[int]) -> CallResult:
    """A call that prints a number a line and returns nothing."""
    return CallResult(None, tuple(map(str, numbers)))


def repeated(f: Operation, x: int, a: int, still: Callable[[int], int]) -> int:
    """x, replaced by f(x, a) for as long as it satisfies `still`."""
    while still(x):
        x = f(x, a)
    return x


WITH_OPERATOR = tuple(itertools.product(OPERATORS, OPERATORS))
WITH_COMPARISON = tuple(itertools.product(OPERATORS, COMPARISONS))
ALONE = tuple((name, "add") for name in OPERATORS)  # the second is not used
THAT_END = (("sub", "above"), ("add", "below"))
TEMPLATES = {
    "then": Template(
        "{f}_{a}_then_{g}_{b}",
        ("{x} = {x} {F} {a}", "return {x} {G} {b}"),
        WITH_OPERATOR,
        lambda f, g, a, b: lambda x: gives(g(f(x, a), b)),
    ),
    "if": Template(
        "{f}_{a}_if_{g}_{b}",
        ("if {x} {G} {b}:", "    return {x} {F} {a}", "else:", "    return {x}"),
        WITH_COMPARISON,
        lambda f, g, a, b: lambda x: gives(f(x, a) if g(x, b) else x),
    ),
    "is": Template(
        "is_{f}_{a}_{g}_{b}",
        ("if {x} {F} {a} {G} {b}:", "    return True", "else:", "    return False"),
        WITH_COMPARISON,
        lambda f, g, a, b: lambda x: gives(g(f(x, a), b)),
    ),
    "for": Template(
        "{f}_{a}_repeat_{b}",
        ("for i in range({b}):", "    {x} = {x} {F} {a}", "return {x}"),
        ALONE,
        lambda f, _, a, b: lambda x: gives(functools.reduce(lambda now, _: f(now, a), range(b), x)),
    ),
    "while": Template(
        "{f}_{a}_while_{g}_{b}",
        ("while {x} {G} {b}:", "    {x} = {x} {F} {a}", "return {x}"),
        THAT_END,
        lambda f, g, a, b: lambda x: gives(repeated(f, x, a, lambda now: g(now, b))),
    ),
    "sum": Template(
        "sum_{f}_{a}_below_{b}",
        ("total = 0", "for i in range({b}):", "    total = total + i {F} {a}", "return total"),
        ALONE,
        lambda f, _, a, b: lambda: gives(sum(f(i, a) for i in range(b))),
    ),
    "print": Template(
        "print_{f}_{a}_below_{b}",
        ("for i in range({b}):", "    print(i {F} {a})"),
        ALONE,
        lambda f, _, a, b: lambda: prints([f(i, a) for i in range(b)]),
    ),
}
# number of arguments, body, meaning: the plan's and some like them
SHORT: dict[str, tuple[int, tuple[str, ...], Meaning]] = {
    "add": (2, ("return {x} + {y}",), lambda x, y: gives(x + y)),
    "sub": (2, ("return {x} - {y}",), lambda x, y: gives(x - y)),
    "mul": (2, ("return {x} * {y}",), lambda x, y: gives(x * y)),
    "larger": (
        2,
        ("if {x} > {y}:", "    return {x}", "else:", "    return {y}"),
        lambda x, y: gives(max(x, y)),
    ),
    "smaller": (
        2,
        ("if {x} < {y}:", "    return {x}", "else:", "    return {y}"),
        lambda x, y: gives(min(x, y)),
    ),
    "is_even": (
        1,
        ("if {x} % 2 == 0:", "    return True", "else:", "    return False"),
        lambda x: gives(x % 2 == 0),
    ),
    "is_odd": (
        1,
        ("if {x} % 2 == 1:", "    return True", "else:", "    return False"),
        lambda x: gives(x % 2 == 1),
    ),
    "double": (1, ("return {x} * 2",), lambda x: gives(2 * x)),
    "square": (1, ("return {x} * {x}",), lambda x: gives(x**2)),
    "count_down": (
        1,
        ("while {x} > 0:", "    print({x})", "    {x} = {x} - 1"),
        lambda x: prints(range(x, 0, -1)),
    ),
    "count_to_ten": (0, ("for i in range(10):", "    print(i)"), lambda: prints(range(10))),
}


def function_of(kind: str, f: str, g: str, a: int, b: int, x: str) -> Function:
    """A function of one of the templates."""
    template = TEMPLATES[kind]
    (sign_f, operation_f), (sign_g, operation_g) = SIGNS[f], SIGNS[g]
    words = {"f": f, "F": sign_f, "g": g, "G": sign_g, "a": a, "b": b, "x": x}
    body = tuple(line.format(**words) for line in template.body)
    arguments = (x,) if "{x}" in template.body[0] + template.body[-1] else ()
    return Function(
        kind,
        template.name.format(**words),
        arguments,
        body,
        template.meaning(operation_f, operation_g, a, b),
        (a, b),
    )


def short_functions() -> Iterator[Function]:
    """Every function of the kind `words`."""
    for name, (count, lines, meaning) in SHORT.items():
        for arguments in itertools.permutations(ARGUMENTS, count):
            words = dict(zip("xy"[:count], arguments, strict=True))
            yield Function("words", name, arguments, tuple(line.format(**words) for line in lines), meaning)


def random_functions(seed: str, *, kept_back: bool) -> Iterator[Function]:
    """Functions of the seven kinds of templates in turn, without end: of the evaluation, or of the rest."""
    generator = random.Random(f"{seed} {kept_back}")
    for kind in itertools.cycle(TEMPLATES):
        found = None
        while found is None or found.kept_back != kept_back:
            f, g = generator.choice(TEMPLATES[kind].choices)
            found = function_of(
                kind,
                f,
                g,
                generator.choice(CONSTANTS),
                generator.choice(CONSTANTS),
                generator.choice(ARGUMENTS),
            )
        yield found


def training_functions(seed: int) -> Iterator[Function]:
    """Functions that may be trained on, without end: every eighth one of the kind `words`."""
    generator = random.Random(seed)
    short = [function for function in short_functions() if not function.kept_back]
    others = random_functions(f"training {seed}", kept_back=False)
    while True:
        yield generator.choice(short)
        yield from itertools.islice(others, len(TEMPLATES))


def evaluation_functions() -> list[Function]:
    """The evaluation set: equally many distinct names of each kind, and all held-out ones of `words`."""
    found: dict[str, dict[str, Function]] = {kind: {} for kind in TEMPLATES}
    for function in random_functions("evaluation", kept_back=True):
        if len(found[function.kind]) < CASES_PER_KIND:
            found[function.kind].setdefault(function.name, function)
        elif all(len(group) == CASES_PER_KIND for group in found.values()):
            break
    cases = [function for group in found.values() for function in group.values()]
    return cases + [function for function in short_functions() if function.kept_back]
