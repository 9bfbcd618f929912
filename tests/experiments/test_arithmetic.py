"""By enumeration: nothing held out is ever trained on, and every answer is right."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

import numpy as np
import pytest

from bitnet.data.generated import held_out
from bitnet.experiments.arithmetic import (
    QUICK,
    REFERENCE,
    ArithmeticData,
    ArithmeticTask,
    Problem,
    all_problems,
    experiment,
)

PLAIN = re.compile(r"(\d+) (\+|-|\*|//) (\d+) = (-?\d+)\n")


@pytest.fixture(scope="module")
def reference() -> ArithmeticTask:
    return ArithmeticTask(REFERENCE)


def key(left: int, op: str, right: int) -> str:
    """What is hashed, written again here: the smaller operand first where order does not matter."""
    if op in "+*" and left > right:
        left, right = right, left
    return f"{left} {op} {right}"


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
