"""Every way to name a run, in a folder of one and of several, one of them damaged; and the files of lines."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from bitnet.errors import NotFoundError, RunError
from bitnet.files import write_json
from bitnet.run.layout import RunLayout, check_run_id, find_run, list_runs


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


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """runs/ with `old` and `new` of the experiment arithmetic and `story` of tinystories between them."""
    for second, (run_id, experiment) in enumerate(
        (("old", "arithmetic"), ("story", "tinystories"), ("new", "arithmetic"))
    ):
        layout = RunLayout(tmp_path / "runs" / run_id)
        write_json(layout.config, {"experiment": experiment})
        os.utime(layout.config, (1000 + second, 1000 + second))
        for step in (0, 10, 1_234_567):
            layout.checkpoint(step).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


@pytest.mark.parametrize(
    ("word", "run_id", "step"),
    [
        ("latest", "new", None),
        ("arithmetic", "new", None),
        ("tinystories", "story", None),
        ("./runs/old/", "old", None),
        ("runs/old/meta/config.json", "old", None),
        ("runs/old/checkpoints/step_000010/", "old", 10),
        ("runs/old/checkpoints/step_1234567", "old", 1_234_567),
        ("runs/old/checkpoint_10.pt", "old", 10),
        ("runs/old/checkpoint_000010.pt", "old", 10),
        ("runs/old/checkpoints/checkpoint_10.pt", "old", 10),
        ("runs/old/checkpoint.pt", "old", None),
    ],
)
def test_every_form_of_run_is_understood(folder: Path, word: str, run_id: str, step: int | None) -> None:
    """Also from a place where the runs folder is not the default one."""
    found = find_run(word, folder)
    assert (found.layout.run_id, found.step) == (run_id, step)
    assert found.layout.root.resolve() == (folder / run_id).resolve()


def test_from_inside_a_run_a_dot_is_that_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder / "old")
    assert find_run(".", folder).layout.run_id == "old"


@pytest.mark.parametrize("word", ["odl", "baseline", "runs/none", "/", "", ".", "runs/old.txt"])
def test_what_is_no_run_is_an_error(folder: Path, word: str) -> None:
    with pytest.raises(NotFoundError, match="there is no run"):
        find_run(word, folder)


def test_one_damaged_config_does_not_hide_the_other_runs(folder: Path) -> None:
    """It did: any folder with half a config.json made every experiment's name an error."""
    config = folder / "story" / "meta" / "config.json"
    config.write_text("{ half")
    os.utime(config, (1001, 1001))
    assert find_run("arithmetic", folder).layout.run_id == "new"
    assert [layout.run_id for layout in list_runs(folder)] == ["old", "story", "new"]


def test_a_folder_without_a_config_is_no_run(folder: Path) -> None:
    (folder / "notes").mkdir()
    (folder / "file").touch()
    assert [layout.run_id for layout in list_runs(folder)] == ["old", "story", "new"]
