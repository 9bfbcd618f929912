"""Expressions with parentheses, parsed from their text alone: true, and free of held-out problems outside
evaluation.
"""

from __future__ import annotations

import ast
import dataclasses
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bitnet.errors import ConfigError
from bitnet.experiments.arithmetic import REFERENCE, ArithmeticData, ArithmeticTask, Problem
from bitnet.train.config import RunConfig

SIGNS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.FloorDiv: "//"}


def with_expressions(count: int, **data: object) -> RunConfig:
    return dataclasses.replace(REFERENCE, data=ArithmeticData(expressions=count, **data))  # type: ignore[arg-type]


def problems(text: str) -> list[Problem]:
    """The plain problems that computing an expression goes through, innermost first."""
    found: list[Problem] = []

    def value(node: ast.expr) -> int:
        if isinstance(node, ast.BinOp):
            problem = Problem(value(node.left), SIGNS[type(node.op)], value(node.right))
            found.append(problem)
            return int(eval(f"({problem.left}) {problem.op} ({problem.right})"))
        return int(ast.literal_eval(node))

    value(ast.parse(text, mode="eval").body)
    return found


def test_expressions_and_plain_problems_keep_one_hold_out() -> None:
    task = ArithmeticTask(with_expressions(3000))
    plain_held_out = {
        problem
        for case in task.held_out_cases
        if "(" not in case.prompt
        for problem in problems(case.prompt[:-3])
    }
    twins = {Problem(p.right, p.op, p.left) for p in plain_held_out if p.op in ("+", "*")}
    trained = {problem for example in task.training for problem in problems(example.prompt[:-3])}
    assert trained.isdisjoint(plain_held_out | twins)
    assert not any(
        problem.kept_back for problem in trained
    )  # also where an outer problem leaves the plain range


def test_every_held_out_expression_holds_a_held_out_problem() -> None:
    cases = [
        case for case in ArithmeticTask(with_expressions(100)).held_out_cases if case.kind == "expression"
    ]
    assert len(cases) == 1000
    assert all(any(problem.kept_back for problem in problems(case.prompt[:-3])) for case in cases)


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Fail instead of hanging."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"still searching after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_more_expressions_than_there_are_is_an_error_and_not_an_endless_search() -> None:
    """With one operator and operands 1-2 there are 16 distinct expressions at most."""
    with at_most(10), pytest.raises(ConfigError, match=r"data\.expressions"):
        assert ArithmeticTask(with_expressions(5000, operators=("+",), max_operand=2)).training


def test_a_small_task_with_few_held_out_expressions_takes_those_there_are() -> None:
    """The evaluation wants a thousand; operands up to 3 do not have as many, and that must not hang
    either.
    """
    with at_most(10):
        cases = ArithmeticTask(with_expressions(5, max_operand=3)).held_out_cases
    expressions = [case for case in cases if case.kind == "expression"]
    assert 0 < len(expressions) <= 1000
