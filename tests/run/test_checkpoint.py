"""Checkpoints are whole or absent, and damage is noticed."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError

import bitnet.run.checkpoint as checkpoint_module
from bitnet.errors import CheckpointError, NotFiniteError
from bitnet.run.checkpoint import (
    Checkpoint,
    load_checkpoint,
    newest_good,
    prune,
    retained_steps,
    save_checkpoint,
)
from bitnet.run.layout import RunLayout
from bitnet.trained_model import load
from conftest import TINY_TRAIN, Command

FILES = ("model.safetensors", "optimizer.safetensors", "observers.safetensors", "state.json", "manifest.json")


def small(step: int) -> Checkpoint:
    tensors = {"w": torch.full((3, 2), float(step))}
    return Checkpoint(
        step, tensors, {"m": torch.ones(2)}, {"step": step}, {"codes": torch.zeros(1, dtype=torch.uint8)}
    )


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path)
    save_checkpoint(layout, small(7))
    loaded = load_checkpoint(layout.checkpoint(7))
    assert loaded.step == 7
    assert torch.equal(loaded.model["w"], torch.full((3, 2), 7.0))
    assert {path.name for path in layout.checkpoint(7).iterdir()} == set(FILES)
    assert layout.checkpoint(7).name == "step_000007"


@pytest.mark.parametrize("damage", [empty, cut, flip, Path.unlink])
@pytest.mark.parametrize("name", FILES)
def test_any_damage_to_any_file_is_noticed_and_the_newest_good_one_is_used(
    tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    layout = RunLayout(tmp_path)
    for step in (1, 2):
        save_checkpoint(layout, small(step))
    damage(layout.checkpoint(2) / name)
    with pytest.raises(CheckpointError, match="step_000002"):
        load_checkpoint(layout.checkpoint(2))
    problems: list[str] = []
    good = newest_good(layout, problems.append)
    assert good is not None
    assert good.step == 1
    assert len(problems) == 1
    assert "step_000002" in problems[0]


class Full:
    """A disk that is full from the n-th write on: every file is forced to disk, so os.fsync counts them."""

    def __init__(self, patch: pytest.MonkeyPatch, left: int) -> None:
        self.left, self.real = left, os.fsync
        patch.setattr(os, "fsync", self.fsync)

    def fsync(self, descriptor: int) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.real(descriptor)


@pytest.mark.parametrize("left", range(8))
def test_full_disk_at_any_write_leaves_earlier_checkpoints_untouched(tmp_path: Path, left: int) -> None:
    layout = RunLayout(tmp_path)
    save_checkpoint(layout, small(1))
    with pytest.MonkeyPatch.context() as patch:
        disk = Full(patch, left)
        with pytest.raises(CheckpointError, match="No space left"):
            save_checkpoint(layout, small(2))
    assert disk.left == -1
    assert layout.checkpoint_steps() == [1]
    assert load_checkpoint(layout.checkpoint(1)).step == 1
    assert not list(layout.checkpoints.glob(".*"))


def test_full_disk_inside_the_tensor_library_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SafetensorError is no OSError: a full disk ended in a traceback."""

    def full(tensors: object, path: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    layout = RunLayout(tmp_path)
    save_checkpoint(layout, small(1))
    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        save_checkpoint(layout, small(2))
    assert layout.checkpoint_steps() == [1]


def test_pruning_never_deletes_what_was_promised(tmp_path: Path) -> None:
    """--keep-last 0 deleted the checkpoint that a stop had just named."""
    layout = RunLayout(tmp_path)
    for step in (1, 2, 3, 4):
        save_checkpoint(layout, small(step))
    prune(layout, mandatory=[], keep_last=0, keep_every=10, named=[2])
    assert layout.checkpoint_steps() == [2, 4]


def test_damaged_checkpoints_do_not_count_among_the_last_few(tmp_path: Path) -> None:
    """Two damaged newest ones filled the places of --keep-last 2, and the good one before them was
    deleted.
    """
    layout = RunLayout(tmp_path)
    for step in (1, 2, 3, 4, 5):
        save_checkpoint(layout, small(step))
    for step in (4, 5):
        flip(layout.checkpoint(step) / "optimizer.safetensors")
    prune(layout, mandatory=[], keep_last=2, keep_every=10)
    assert layout.checkpoint_steps() == [2, 3, 4, 5]
    for step in (2, 3):
        flip(layout.checkpoint(step) / "model.safetensors")
    prune(layout, mandatory=[], keep_last=2, keep_every=10)
    assert layout.checkpoint_steps() == [2, 3, 4, 5]


def test_folder_of_a_killed_save_does_not_count_and_is_cleared(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path)
    save_checkpoint(layout, small(1))
    shutil.copytree(layout.checkpoint(1), layout.checkpoints / ".step_000002.123.tmp")
    shutil.copytree(layout.checkpoint(1), layout.checkpoints / ".step_000003.123.old.tmp")
    assert layout.checkpoint_steps() == [1]
    prune(layout, mandatory=[], keep_last=5, keep_every=10)
    assert [path.name for path in layout.checkpoints.iterdir()] == ["step_000001"]


def test_retention_keeps_the_last_few_every_so_many_and_the_mandatory() -> None:
    steps = [0, *range(5000, 65_000, 5000), 29_999]
    kept = retained_steps(steps, mandatory={0, 29_999, 30_000, 60_000}, keep_last=5, keep_every=10_000)
    assert kept == {0, 10_000, 20_000, 29_999, 30_000, 40_000, 45_000, 50_000, 55_000, 60_000}


@pytest.mark.slow
def test_damaged_newest_checkpoint_is_named_on_use_and_on_resume(bitnet: Command, runs: Path) -> None:
    flip(runs / "tiny" / "checkpoints" / "step_000008" / "model.safetensors")
    result = bitnet("evaluate", "tiny", "--runs-dir", runs)
    assert result.code == 0
    assert "step_000008" in result.err
    assert "at step 6" in result.out
    named = bitnet("evaluate", runs / "tiny" / "checkpoints" / "step_000008", "--runs-dir", runs)
    assert named.code == 2
    assert "SHA-256" in named.err


def test_run_with_no_whole_checkpoint_is_refused_and_nothing_is_deleted(bitnet: Command, runs: Path) -> None:
    for folder in (runs / "tiny" / "checkpoints").iterdir():
        empty(folder / "manifest.json")
    before = sorted(path.name for path in (runs / "tiny" / "checkpoints").iterdir())
    result = bitnet("complete", "tiny", "1 + 1 = ", "--runs-dir", runs)
    assert result.code == 2
    assert len(result.err.strip().splitlines()) == 1
    assert sorted(path.name for path in (runs / "tiny" / "checkpoints").iterdir()) == before


def test_run_without_a_checkpoint_yet(bitnet: Command, runs: Path) -> None:
    shutil.rmtree(runs / "tiny" / "checkpoints")
    result = bitnet("evaluate", "tiny", "--runs-dir", runs)
    assert result.code == 2
    assert "no checkpoint yet" in result.err


def test_loaded_in_python_it_completes_and_generates(runs: Path) -> None:
    model = load("tiny", runs_dir=runs)
    assert isinstance(model.complete("1 + 2 = "), str)
    ids = torch.tensor([model.tokenizer.encode("1 + 2 = ")])
    out = model.generate(ids, max_length=20)
    assert torch.equal(out[:, :8], ids)
    assert 9 <= out.shape[1] <= 20


def with_nan(step: int) -> Checkpoint:
    return small(step)._replace(model={"w": torch.tensor([1.0, float("nan")])})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("part", ["model", "optimizer"])
def test_a_tensor_that_is_not_finite_is_never_saved(tmp_path: Path, part: str, value: float) -> None:
    layout = RunLayout(tmp_path)
    save_checkpoint(layout, small(1))
    broken = {"w": torch.ones(2), "m": torch.tensor([1.0, value])}
    with pytest.raises(NotFiniteError, match=r"update 2 was written, because m holds NaN or infinite"):
        save_checkpoint(layout, small(2)._replace(**{part: broken}))
    assert layout.checkpoint_steps() == [1]
    assert not list(layout.checkpoints.glob(".*"))


def saved_by_an_older_version(
    layout: RunLayout, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_module, "first_not_finite", lambda tensors: None)
        save_checkpoint(layout, checkpoint)


def test_a_checkpoint_with_nan_is_whole_by_its_hashes_and_still_not_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = RunLayout(tmp_path)
    save_checkpoint(layout, small(1))
    saved_by_an_older_version(layout, with_nan(2), monkeypatch)
    with pytest.raises(
        CheckpointError, match=r"step_000002: w in model.safetensors holds NaN or infinite values"
    ):
        load_checkpoint(layout.checkpoint(2))
    problems: list[str] = []
    good = newest_good(layout, problems.append)
    assert good is not None
    assert good.step == 1
    assert len(problems) == 1


@pytest.fixture
def broken_runs(runs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The finished run `tiny`, whose last checkpoint holds a NaN, as versions before this one would have
    written it.
    """
    layout = RunLayout(runs / "tiny")
    last = load_checkpoint(layout.checkpoint(8))
    last.model["final_norm.weight"][0] = torch.nan
    saved_by_an_older_version(layout, last, monkeypatch)
    return runs


@pytest.mark.parametrize("words", [("evaluate", "tiny"), ("complete", "tiny", "1 + 1 = ")])
def test_a_checkpoint_with_nan_is_skipped_on_use_and_named(
    bitnet: Command, broken_runs: Path, words: tuple[str, ...]
) -> None:
    result = bitnet(*words, "--json", "--runs-dir", broken_runs)
    assert result.code == 0
    assert result.json["step"] == 6
    assert "step_000008: final_norm.weight in model.safetensors holds NaN" in result.err


def test_a_checkpoint_with_nan_is_neither_loaded_in_python_nor_trained_from(
    bitnet: Command, broken_runs: Path
) -> None:
    assert load("tiny", runs_dir=broken_runs).step == 6
    with pytest.raises(CheckpointError, match="NaN"):
        load(broken_runs / "tiny" / "checkpoints" / "step_000008", runs_dir=broken_runs)
    words = [word for word in TINY_TRAIN if word != "arithmetic"][1:]
    begun = bitnet(
        "train",
        "arithmetic",
        *words,
        "--from",
        "tiny",
        "--num-steps",
        1,
        "--run-id",
        "next",
        "--runs-dir",
        broken_runs,
    )
    assert begun.code == 0
    assert "step_000006" in begun.out
    assert "step_000008: final_norm.weight" in begun.err + begun.out


def test_a_run_whose_newest_checkpoint_has_nan_resumes_from_the_one_before(
    bitnet: Command, broken_runs: Path
) -> None:
    status = broken_runs / "tiny" / "status.json"
    status.write_text(status.read_text().replace('"done"', '"failed"'))
    again = bitnet(
        *TINY_TRAIN,
        "--num-steps",
        8,
        "--train.checkpoint-every",
        3,
        "--run-id",
        "tiny",
        "--runs-dir",
        broken_runs,
    )
    assert again.code == 0
    assert "continuing after update 6" in again.out
    assert load("tiny", runs_dir=broken_runs).step == 8
