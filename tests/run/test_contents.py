"""Pipes, devices and links in a run folder: one line before anything is opened, by every command, and nothing
outside is touched.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from bitnet.errors import RunError
from bitnet.run import contents
from bitnet.run.contents import check_contents
from conftest import TINY_TRAIN, Command

RESUME = (*TINY_TRAIN, "--num-steps", 8, "--train.checkpoint-every", 3, "--run-id", "tiny")
VERBS: dict[str, tuple[object, ...]] = {
    "evaluate": ("evaluate", "tiny"),
    "complete": ("complete", "tiny", "1 + 1 = "),
    "status": ("status", "tiny"),
    "plot": ("plot", "tiny"),
    "report": ("report", "tiny"),
    "diagnose": ("diagnose", "tiny"),
    "train": RESUME,
    "from": (*TINY_TRAIN, "--from", "tiny", "--dry-run"),
}
PLACES = tuple(
    """
    meta/config.json meta/manifest.json meta/signature.json tokenizer/characters.json metrics/scalars.jsonl
    status.json eval/verdict.json .lock checkpoints/step_000008/manifest.json
    checkpoints/step_000008/model.safetensors
""".split()
)


@pytest.mark.parametrize("verb", VERBS)
def test_a_pipe_never_hangs_a_command(verb: str, bitnet: Command, runs: Path) -> None:
    pipe = runs / "tiny" / "eval" / "verdict.json"
    pipe.unlink(missing_ok=True)
    os.mkfifo(pipe)
    result = bitnet(*VERBS[verb], "--runs-dir", runs)
    assert result.code == 2
    assert "verdict.json is a named pipe" in result.err
    assert len(result.err.strip().splitlines()) == 1


@pytest.mark.parametrize("place", PLACES)
def test_a_pipe_in_any_place_is_one_line(place: str, bitnet: Command, runs: Path) -> None:
    path = runs / "tiny" / place
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    result = bitnet("evaluate", runs / "tiny", "--runs-dir", runs)
    assert result.code == 2
    assert len(result.err.strip().splitlines()) == 1
    assert bitnet("runs", "--runs-dir", runs).code == 0, "one bad folder must not hide the others"


def test_evaluate_writes_nothing_through_a_link(bitnet: Command, runs: Path, tmp_path: Path) -> None:
    """`eval` as a link to a folder of the user's: the verdict would be written there."""
    home = tmp_path / "home"
    (runs / "tiny" / "eval").rename(home)
    (runs / "tiny" / "eval").symlink_to(home)
    before = sorted(home.iterdir())
    assert "leads out of the run" in bitnet("evaluate", "tiny", "--runs-dir", runs).err
    assert sorted(home.iterdir()) == before


def test_a_resume_neither_appends_to_nor_cuts_what_a_link_leads_to(
    bitnet: Command, runs: Path, tmp_path: Path
) -> None:
    precious, scalars = tmp_path / "precious", runs / "tiny" / "metrics" / "scalars.jsonl"
    precious.write_text(scalars.read_text() + "all my notes")
    before = precious.read_text()
    scalars.unlink()
    scalars.symlink_to(precious)
    result = bitnet(*RESUME, "--runs-dir", runs)
    assert result.code == 2
    assert precious.read_text() == before


def test_links_inside_a_run_and_to_a_run_are_fine(bitnet: Command, runs: Path, tmp_path: Path) -> None:
    (runs / "tiny" / "wandb").mkdir()
    (runs / "tiny" / "wandb" / "latest-run").symlink_to("../eval")
    (tmp_path / "link").symlink_to(runs / "tiny")
    assert bitnet("evaluate", tmp_path / "link", "--runs-dir", runs).code == 0


def test_sockets_devices_loops_and_floods_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loop").symlink_to("loop")
    check_contents(tmp_path)
    (tmp_path / "null").symlink_to("/dev/null")
    with pytest.raises(RunError, match="leads out"):
        check_contents(tmp_path)
    (tmp_path / "null").unlink()
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("door")
    with pytest.raises(RunError, match="is a socket"):
        check_contents(tmp_path)
    (tmp_path / "door").unlink()
    monkeypatch.setattr(contents, "MOST_ENTRIES", 2)
    for number in range(3):
        (tmp_path / f"file{number}").touch()
    with pytest.raises(RunError, match="more than 2 files"):
        check_contents(tmp_path)
