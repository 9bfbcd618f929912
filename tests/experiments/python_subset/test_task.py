"""Rows of functions, the judge by bodies whose fault is known, and what is shown."""

from __future__ import annotations

import ast
import itertools

import numpy as np
import pytest

from bitnet.errors import ConfigError
from bitnet.experiments import generated_task
from bitnet.experiments.python_subset.functions import END, TEMPLATES, Function, training_functions
from bitnet.experiments.python_subset.task import LONGEST_BODY, QUICK, FunctionData, PythonTask, training_text
from bitnet.nn.transformer import BitNetTransformer


@pytest.fixture(scope="module")
def task() -> PythonTask:
    return PythonTask(QUICK)


@pytest.fixture(scope="module")
def trained() -> list[Function]:
    return list(itertools.islice(training_functions(QUICK.train.seed), 20_000))


def source_of(function: Function) -> str:
    return function.example.prompt + function.example.answer


@pytest.mark.slow
def test_bodies_and_rows_fit(task: PythonTask, trained: list[Function]) -> None:
    answers = [function.example.answer for function in trained]
    assert max(map(len, answers)) <= LONGEST_BODY
    whole = {source_of(function) for function in trained}
    for row in task.source.rows(np.arange(20)).input_ids.tolist():
        *sources, _ = task.tokenizer.decode(row).split(END)
        assert {source + END for source in sources} <= whole


def written(bodies: dict[str, str]) -> object:
    """A stand-in for a model: what each first line is continued with."""
    return lambda model, tokenizer, prompts, **settings: [bodies[prompt] for prompt in prompts]


@pytest.mark.slow
def test_judge_tells_form_from_meaning(task: PythonTask, monkeypatch: pytest.MonkeyPatch) -> None:
    model = BitNetTransformer(QUICK.model)
    cases = task.held_out_cases
    bodies = {function.example.prompt: function.example.answer for function in cases}
    monkeypatch.setattr(generated_task, "continuations", written(bodies))
    metrics = task.judge(model)
    assert {value for name, value in metrics.items() if not name.endswith("_cases")} == {1.0}
    assert metrics["right_cases"] == metrics["parses_cases"] == len(cases)
    assert metrics["right_words_cases"] + sum(metrics[f"right_{kind}_cases"] for kind in TEMPLATES) == len(
        cases
    )
    faults = [
        f"    return 0{END}",
        f"  return 0\n{END}",
        f"    return (\n{END}",
        "    return 0\n",
        f"    import os\n{END}",
    ]
    for fault, parses in zip(faults, (1.0, 0.0, 0.0, 0.0, 1.0), strict=True):
        monkeypatch.setattr(generated_task, "continuations", written(dict.fromkeys(bodies, fault)))
        metrics = task.judge(model, 40)
        assert (metrics["parses"], metrics["right"]) == (parses, 0.0)
        assert metrics["right_cases"] == 40


def test_show_gives_the_definition_only_where_the_model_was_wrong(
    task: PythonTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = task.held_out_cases[:2]
    bodies = {first.example.prompt: first.example.answer, second.example.prompt: f"    return 0\n{END}"}
    monkeypatch.setattr(generated_task, "continuations", written(bodies))
    right, wrong = task.show(BitNetTransformer(QUICK.model), 2)
    assert right.answer == right.expected == first.example.answer.rstrip()
    assert wrong.answer == "    return 0"
    assert wrong.expected == second.example.answer.rstrip()


def test_prepared_text_is_python() -> None:
    text = "".join(training_text(QUICK, 50))
    assert len(ast.parse(text).body) == 50
    assert END not in text


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.functions is 0"):
        FunctionData(functions=0)
