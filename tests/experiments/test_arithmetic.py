"""By enumeration: nothing held out is ever trained on, and every answer is right. Expressions are parsed from
their text alone.
"""

from __future__ import annotations

import ast
import dataclasses
import math
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from bitnet.data.generated import held_out
from bitnet.errors import ConfigError
from bitnet.experiments.arithmetic import (
    QUICK,
    REFERENCE,
    ArithmeticData,
    ArithmeticTask,
    Problem,
    all_problems,
    experiment,
)
from bitnet.train.config import RunConfig

PLAIN = re.compile(r"(\d+) (\+|-|\*|//) (\d+) = (-?\d+)\n")


@pytest.fixture(scope="module")
def reference() -> ArithmeticTask:
    return ArithmeticTask(REFERENCE)


def key(left: int, op: str, right: int) -> str:
    """What is hashed, written again here: the smaller operand first where order does not matter."""
    if op in "+*" and left > right:
        left, right = right, left
    return f"{left} {op} {right}"


@pytest.mark.slow
def test_every_problem_is_in_exactly_one_part(reference: ArithmeticTask) -> None:
    trained = {example.prompt for example in reference.training}
    kept = {case.prompt for case in reference.held_out_cases}
    assert not trained & kept
    assert len(trained) + len(kept) == 4 * 101 * 100
    assert len(kept) / (4 * 101 * 100) == pytest.approx(0.1, abs=0.005)


def test_no_trained_problem_is_held_out_nor_its_commuted_twin(reference: ArithmeticTask) -> None:
    for example in reference.training:
        match = PLAIN.fullmatch(example.prompt + example.answer)
        assert match is not None
        left, op, right = int(match[1]), match[2], int(match[3])
        assert not held_out(key(left, op, right))
    prompts = {example.prompt for example in reference.training}
    for case in reference.held_out_cases:
        left, op, right = case.prompt.split()[:3]
        if op in "+*":
            assert f"{right} {op} {left} = " not in prompts


def test_every_answer_is_right(reference: ArithmeticTask) -> None:
    for prompt, answer in [*reference.training, *(case[1:] for case in reference.held_out_cases)]:
        assert eval(prompt.removesuffix(" = ")) == int(answer)


@pytest.mark.slow
def test_no_trained_expression_contains_a_held_out_problem() -> None:
    task = ArithmeticTask(dataclasses.replace(REFERENCE, data=ArithmeticData(expressions=3000)))
    found = [example for example in task.training if "(" in example.prompt]
    assert len(found) == 3000
    for prompt, answer in found:
        inner = re.search(r"\((\d+) (\+|-|\*|//) (\d+)\)", prompt)
        assert inner is not None
        assert not held_out(key(int(inner[1]), inner[2], int(inner[3])))
        value = eval(inner[0])
        left, op, right = prompt.replace(inner[0], str(value)).removesuffix(" = ").split(" ")
        assert not held_out(key(int(left), op, int(right)))
        assert eval(prompt.removesuffix(" = ")) == int(answer)
    kept = [case for case in task.held_out_cases if case.kind == "expression"]
    assert len(kept) == 1000
    assert not {case.prompt for case in kept} & {example.prompt for example in task.training}


def test_rows_decode_to_training_lines(reference: ArithmeticTask) -> None:
    lines = {example.prompt + example.answer for example in reference.training}
    batch = reference.source.rows(np.arange(20))
    for row in batch.input_ids.tolist():
        *whole, _ = reference.tokenizer.decode(row).split("\n")
        assert whole
        assert {f"{line}\n" for line in whole} <= lines


@pytest.mark.slow
@pytest.mark.parametrize("variant", experiment.variants)
def test_every_variant_is_trained_and_judged_on_operands_up_to_a_hundred(variant: str) -> None:
    """`quick` once ended at 99 while 100 - 35 was a fixed sample: it answered -25 under a PASS."""
    task = ArithmeticTask(experiment.variants[variant].config)
    for prompts in (
        {example.prompt for example in task.training},
        {case.prompt for case in task.held_out_cases},
    ):
        operands = [(int(words[0]), int(words[2])) for words in (prompt.split() for prompt in prompts)]
        assert max(left for left, _ in operands) == max(right for _, right in operands) == 100
        assert min(left for left, _ in operands) == 0


@pytest.mark.slow
@pytest.mark.parametrize("variant", experiment.variants)
def test_every_fixed_prompt_is_a_problem_of_its_variant(variant: str) -> None:
    task = ArithmeticTask(experiment.variants[variant].config)
    known = {example.prompt for example in task.training} | {case.prompt for case in task.held_out_cases}
    assert set(task.prompts) <= known


def test_the_page_gives_the_entropy_of_the_data_as_a_perfect_models_loss(reference: ArithmeticTask) -> None:
    """Problems are drawn alike from a table of N, so each costs ln(N) nats, however they are spread over its
    tokens.
    """
    nats = math.log(len(reference.training))
    tokens = sum(
        len(reference.tokenizer.encode(prompt + answer)) for prompt, answer in reference.training
    ) / len(reference.training)
    page = (Path(__file__).parents[2] / "docs" / "experiments" / "arithmetic.md").read_text(encoding="utf-8")
    floor = re.search(r"(\d\.\d+) nats\s+per\s+token\s+is\s+the\s+floor\s+of\s+a\s+perfect\s+model", page)
    assert floor is not None
    assert float(floor[1]) == pytest.approx(nats / tokens, abs=0.005)


def test_vocabulary_is_32_and_covers_everything(reference: ArithmeticTask) -> None:
    assert reference.tokenizer.vocab_size == 32
    assert max(max(reference.tokenizer.encode(e.prompt + e.answer)) for e in reference.training) < 32
    assert (
        reference.tokenizer.decode(reference.tokenizer.encode("(3 + 5) * 2 = 16\n")) == "(3 + 5) * 2 = 16\n"
    )


def test_quick_is_all_sums_and_differences_up_to_a_hundred() -> None:
    assert sum(1 for _ in all_problems(QUICK.data)) == 2 * 101 * 101  # type: ignore[arg-type]
    assert Problem(3, "+", 90).key == Problem(90, "+", 3).key
    assert Problem(3, "-", 90).key != Problem(90, "-", 3).key


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


@pytest.mark.slow
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


@pytest.mark.slow
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
