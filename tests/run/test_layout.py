"""Every way to name a run, and the files of lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bitnet.errors import NotFoundError, RunError
from bitnet.files import write_json
from bitnet.run.layout import RunLayout, check_run_id, find_run


@pytest.mark.parametrize(
    ("word", "step"),
    [
        ("tiny", None),
        ("{runs}/tiny", None),
        ("{runs}/tiny/", None),
        ("{runs}/tiny/checkpoints/step_000006", 6),
        ("arithmetic", None),
        ("{runs}/tiny/checkpoints/step_000006/model.safetensors", 6),
        ("{runs}/tiny/checkpoints/step_000006/checkpoint.pt", 6),
        ("{runs}/tiny/checkpoint_10000.pt", 10_000),
        ("{runs}/tiny/metrics/scalars.jsonl", None),
        ("latest", None),
    ],
)
def test_run_is_found_by_id_path_checkpoint_experiment_and_latest(
    runs: Path, word: str, step: int | None
) -> None:
    found = find_run(word.format(runs=runs), runs)
    assert found.layout.run_id == "tiny"
    assert found.step == step


def test_unknown_run_offers_the_nearest(runs: Path) -> None:
    with pytest.raises(NotFoundError, match='Did you mean "tiny"'):
        find_run("tinny", runs)
    with pytest.raises(NotFoundError, match="bitnet train"):
        find_run("x", runs / "none")


@pytest.mark.parametrize(
    "bad", ["a/b", "..", "a..b", "", "-x", ".x", "a b", "ü", "x" * 65, "latest", "arithmetic"]
)
def test_odd_run_ids_are_refused(bad: str) -> None:
    with pytest.raises(RunError):
        check_run_id(bad, frozenset({"arithmetic"}))


@pytest.mark.parametrize("good", ["a", "bitnet_95M_fineweb_T1.97B_1703097600", "x" * 64])
def test_plain_run_ids_pass(good: str) -> None:
    assert check_run_id(good) == good


def test_json_is_replaced_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})
    with pytest.raises(TypeError):
        write_json(path, {"x": object()})
    assert json.loads(path.read_text()) == {"x": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_six_digits_everywhere(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path)
    assert layout.checkpoint(15_000).name == "step_015000"
    assert layout.anomaly(7, "loss_spike").name == "step_000007_loss_spike"
