"""What the JSON of a run must hold: the wrong type is one error that names the file and the key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bitnet.errors import DataError
from bitnet.files import write_json
from bitnet.run.layout import RunLayout
from bitnet.run.records import check_config, is_row, read_state, read_status, read_verdict


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"experiment": 3}, "experiment"),
        ({"model": {"hidden_size": "wide"}}, "hidden_size"),
        ({"training": {"seed": 1.5}}, "seed"),
        ({"training": []}, "training"),
    ],
)
def test_a_config_with_a_wrong_type_names_the_key(config: dict[str, Any], key: str) -> None:
    with pytest.raises(DataError, match=rf"config\.json.*{key}"):
        check_config(config, "config.json")


def test_a_config_may_hold_what_is_not_known_here() -> None:
    config = {"experiment": "mine", "training": {"seed": 1, "own": "x"}, "later": [1]}
    assert check_config(config, "config.json") is config


def test_a_status_needs_its_state(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path)
    write_json(layout.status, {"state": "running", "step": 3})
    assert read_status(layout)["step"] == 3
    write_json(layout.status, {"step": 3})
    with pytest.raises(DataError, match="state"):
        read_status(layout)


def test_each_criterion_of_a_verdict_is_checked(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path)
    verdict = {"run": "one", "step": 1, "verdict": "PASS", "metrics": {"exact_match": None}, "criteria": []}
    layout.verdict.parent.mkdir(parents=True)
    write_json(layout.verdict, verdict)
    assert read_verdict(layout) == verdict
    write_json(layout.verdict, {**verdict, "criteria": [{"name": "exact_match", "value": 1.0, "met": "yes"}]})
    with pytest.raises(DataError, match=r"a criterion.*met"):
        read_verdict(layout)


def test_the_extents_of_a_state_are_complete(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    write_json(path, {"step": 4, "lines": {"scalars": {"bytes": 10, "lines": 1}}})
    with pytest.raises(DataError, match="sha256"):
        read_state(path)


@pytest.mark.parametrize(
    "row",
    [
        {"step": 0},
        {"step": 5, "loss": 1.5, "own_key": "text"},
        {"step": 5, "loss": None},
        {"step": 1, "prompt": "1+1=", "generated_ids": [1, 2]},
    ],
)
def test_rows_are_rows(row: dict[str, Any]) -> None:
    assert is_row(row)


@pytest.mark.parametrize(
    "row",
    [
        None,
        [],
        {},
        {"step": -1},
        {"step": True},
        {"step": 1.0},
        {"step": 2**53},
        {"step": 1, "loss": "low"},
        {"step": 1, "loss": 1e301},
        {"step": 1, "loss": [1.0]},
        {"step": 1, "prompt": 3},
        {"step": 1, "generated_ids": "12"},
    ],
)
def test_other_values_are_no_rows(row: Any) -> None:
    assert not is_row(row)
