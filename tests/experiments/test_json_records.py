"""By enumeration: no training record has a held-out pair of values. And the judge, by lines whose fault is
known.
"""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet.data.generated import held_out
from bitnet.errors import ConfigError
from bitnet.experiments import generated_task
from bitnet.experiments.json_records import (
    CASES_PER_CUT,
    CITIES,
    CUTS,
    END,
    NAMES,
    PROMPTS,
    QUICK,
    Beginning,
    JsonTask,
    RecordData,
    given_fields,
    keeps,
    meets_schema,
    parse,
    training_lines,
)
from bitnet.nn.transformer import BitNetTransformer

ALICE = '{"name": "Alice", "age": 25, "city": "Boston"}'


@pytest.fixture(scope="module")
def task() -> JsonTask:
    return JsonTask(QUICK)


@pytest.fixture(scope="module")
def trained() -> list[str]:
    return list(training_lines(QUICK, 20_000))


def has_held_out_pair(record: dict[str, object]) -> bool:
    """The rule, written again here."""
    pairs = [("name", "age"), ("name", "city"), ("age", "city")]
    return any(held_out(f"{record[a]} {record[b]}", 30) for a, b in pairs if a in record and b in record)


def test_the_vocabulary_is_the_plans() -> None:
    assert len(set(NAMES)) == len(set(CITIES)) == 50
    assert {"Alice", "Bob", "Carol"} < set(NAMES)
    assert {"Boston", "Seattle", "Austin"} < set(CITIES)


def test_no_training_record_has_a_held_out_pair_in_any_order(trained: list[str]) -> None:
    assert not any(has_held_out_pair(json.loads(line)) for line in trained)


def test_every_prompt_gives_a_held_out_pair_and_begins_no_training_line(
    task: JsonTask, trained: list[str]
) -> None:
    cases = task.held_out_cases
    assert len({case.prompt for case in cases}) == len(cases) == CASES_PER_CUT * len(CUTS) >= 2000
    assert all(has_held_out_pair(case.given) for case in cases)
    beginnings = {line[:cut] for line in trained for cut in CUTS}
    assert not beginnings & {case.prompt for case in cases}


def test_about_a_tenth_of_the_combinations_is_held_out() -> None:
    records = [
        {"name": n, "age": a, "city": c} for n, a, c in itertools.product(NAMES, range(18, 38), CITIES)
    ]
    assert sum(map(has_held_out_pair, records)) / len(records) == pytest.approx(0.1, abs=0.02)


def test_lines_are_valid_and_vary_in_order_and_fields(task: JsonTask, trained: list[str]) -> None:
    held = [case.prompt + case.rest for case in task.held_out_cases]
    for line in trained + held:
        record = parse(line)
        assert record is not None
        assert meets_schema(record)
    orders = {tuple(json.loads(line)) for line in trained}
    assert len(orders) == 6 + 24 + 24 + 120  # every order of three keys, of four with either option, of five


@pytest.mark.slow
def test_rows_decode_to_training_lines(task: JsonTask, trained: list[str]) -> None:
    lines = set(trained)
    for row in task.source.rows(np.arange(20)).input_ids.tolist():
        *whole, _ = task.tokenizer.decode(row).split(END)
        assert {f"{line}{END}" for line in whole} <= lines


@pytest.mark.parametrize(
    ("cut", "given"),
    [
        (1, {}),
        (16, {}),
        (17, {}),  # the name is closed, but only the comma says so
        (18, {"name": "Alice"}),
        (26, {"name": "Alice"}),  # 2 of 25, or of 250
        (29, {"name": "Alice", "age": 25}),
        (46, {"name": "Alice", "age": 25, "city": "Boston"}),
    ],
)
def test_a_field_is_given_once_what_follows_it_is(cut: int, given: dict[str, object]) -> None:
    assert given_fields(ALICE + END, cut) == given


@pytest.mark.parametrize(
    "line",
    [
        ALICE,  # no end
        ALICE[:-1] + END,
        ALICE + "}" + END,
        f"[{ALICE}]{END}",
        f'"Alice"{END}',
        END,
        '{"name": "Alice", "age": 25, "city": "Boston", "age": 26}'
        + END,  # json.loads alone would take the second
        '{"name": "Alice", "age": 25, "city": "Boston",}' + END,
        '{"name": "Alice", "age": 025, "city": "Boston"}' + END,
    ],
)
def test_a_line_that_is_no_record(line: str) -> None:
    assert parse(line) is None


@pytest.mark.parametrize(
    "line",
    [
        '{"name": "Alice", "age": 25}',
        '{"name": "Alicia", "age": 25, "city": "Boston"}',
        '{"name": "Boston", "age": 25, "city": "Alice"}',
        '{"name": "Alice", "age": 17, "city": "Boston"}',
        '{"name": "Alice", "age": 100, "city": "Boston"}',
        '{"name": "Alice", "age": 25.0, "city": "Boston"}',
        '{"name": "Alice", "age": "25", "city": "Boston"}',
        '{"name": "Alice", "age": true, "city": "Boston"}',
        '{"name": ["Alice"], "age": 25, "city": "Boston"}',
        '{"name": "Alice", "age": 25, "city": "Boston", "member": 1}',
        '{"name": "Alice", "age": 25, "city": "Boston", "job": null}',
        '{"name": "Alice", "age": 25, "city": "Boston", "jobs": "cook"}',
        "{}",
    ],
)
def test_a_record_that_breaks_the_schema(line: str) -> None:
    record = parse(line + END)
    assert record is not None
    assert not meets_schema(record)


def test_a_record_that_meets_the_schema_and_keeps_what_was_given() -> None:
    record = parse('{"city": "Boston", "member": false, "age": 25, "job": "cook", "name": "Alice"}' + END)
    assert record is not None
    assert meets_schema(record)
    assert keeps(record, {"age": 25, "name": "Alice"})
    assert not keeps(record, {"age": 26})
    assert not keeps(record, {"hobby": "chess"})


@given(st.text(alphabet='{}[]":,\n 0123456789.eE+-truefalsnNI\\uAdam', max_size=60))
def test_whatever_a_model_writes_is_judged_and_not_raised(text: str) -> None:
    record = parse(text + END)
    assert record is None or meets_schema(record) in (True, False)


def continued(rests: dict[str, str]) -> object:
    """A stand-in for a model: what each prompt is continued with."""
    return lambda model, tokenizer, prompts, **settings: [rests[prompt] for prompt in prompts]


def test_judge_counts_a_perfect_writer_as_perfect_and_a_silent_one_as_nothing(
    task: JsonTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = BitNetTransformer(QUICK.model)
    monkeypatch.setattr(
        generated_task, "continuations", continued({case.prompt: case.rest for case in task.held_out_cases})
    )
    metrics = task.judge(model)
    assert metrics["greedy_valid"] == metrics["typical_valid"] == metrics["fields_kept"] == 1.0
    assert (
        metrics["greedy_valid_cases"]
        == metrics["typical_valid_cases"]
        == metrics["fields_kept_cases"]
        == 2400
    )
    monkeypatch.setattr(
        generated_task, "continuations", continued({case.prompt: "" for case in task.held_out_cases})
    )
    metrics = task.judge(model, 50)
    assert metrics["greedy_valid"] == metrics["typical_valid"] == metrics["fields_kept"] == 0.0
    assert metrics["greedy_valid_cases"] == 50


def test_a_field_that_is_lost_is_seen_where_the_record_is_valid(
    task: JsonTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cases are replaced by ones whose prompt says one thing and whose line another."""
    cases = [Beginning(ALICE[:29], ALICE[29:] + END, {"name": "Alice", "age": age}) for age in (25, 26)]
    monkeypatch.setattr(task, "held_out_cases", cases)
    monkeypatch.setattr(
        generated_task, "continuations", continued({case.prompt: case.rest for case in cases})
    )
    metrics = task.judge(BitNetTransformer(QUICK.model))
    assert metrics["greedy_valid"] == 1.0
    assert metrics["fields_kept"] == 0.5


def test_show_calls_any_valid_continuation_right(task: JsonTask, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Beginning(ALICE[:30], ALICE[30:] + END, {"name": "Alice", "age": 25})
    monkeypatch.setattr(task, "held_out_cases", [case])
    other, broken = 'city": "Austin", "member": true}' + END, 'city": "Austin"' + END
    for rest, expected in ((case.rest, case.rest), (other, other), (broken, case.rest)):
        monkeypatch.setattr(generated_task, "continuations", continued({case.prompt: rest}))
        (shown,) = task.show(BitNetTransformer(QUICK.model), 1)
        assert (shown.answer, shown.expected) == (rest.rstrip(), expected.rstrip())


def test_fixed_prompts_begin_records(task: JsonTask) -> None:
    assert len(PROMPTS) == 5
    assert all(prompt.startswith("{") and task.tokenizer.encode(prompt) for prompt in PROMPTS)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.records is 0"):
        RecordData(records=0)
