"""RUN in a folder of several runs, one of them damaged: the newest, the older forms of a path, and what is no
run.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bitnet.errors import NotFoundError
from bitnet.files import write_json
from bitnet.run.layout import RunLayout, find_run, list_runs


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
