"""What decides a run is recorded once, and whoever reads it later is told when it is no longer the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bitnet.errors import DataError
from bitnet.run.layout import RunLayout
from bitnet.run.manifest import read_config, verify_run

COVERED = [
    "meta/config.json",
    "meta/provenance.json",
    "meta/dataset_fingerprint.json",
    "tokenizer/characters.json",
]


def test_the_manifest_lists_what_decides_the_run(runs: Path) -> None:
    manifest = json.loads(RunLayout(runs / "tiny").manifest.read_text())
    assert sorted(manifest["files"]) == sorted(COVERED)


@pytest.mark.parametrize("name", COVERED)
def test_every_flipped_bit_of_every_file_is_noticed(name: str, runs: Path) -> None:
    layout = RunLayout(runs / "tiny")
    path, before = layout.root / name, (layout.root / name).read_bytes()
    for place in range(0, len(before), max(len(before) // 20, 1)):
        path.write_bytes(before[:place] + bytes([before[place] ^ 1]) + before[place + 1 :])
        with pytest.raises(DataError, match=rf"{path.name} was altered since the run began .* restore it"):
            verify_run(layout)
    path.write_bytes(before)
    verify_run(layout)


@pytest.mark.parametrize("name", COVERED)
def test_every_lost_or_cut_file_is_noticed(name: str, runs: Path) -> None:
    layout = RunLayout(runs / "tiny")
    path, before = layout.root / name, (layout.root / name).read_bytes()
    for damage in (lambda: path.write_bytes(b""), lambda: path.write_bytes(before[:-2]), path.unlink):
        damage()
        with pytest.raises(DataError, match=path.name):
            verify_run(layout)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"format": 1, "files": []}', '{"format": 1, "files": {"meta/config.json": 3}}'],
)
def test_a_damaged_manifest_is_said(content: str, runs: Path) -> None:
    layout = RunLayout(runs / "tiny")
    layout.manifest.write_text(content)
    for read in (read_config, verify_run):
        with pytest.raises(DataError, match=r"manifest\.json"):
            read(layout)


def test_a_run_made_before_there_was_a_manifest_is_read_as_it_is(runs: Path) -> None:
    layout = RunLayout(runs / "tiny")
    layout.manifest.unlink()
    verify_run(layout)
    assert read_config(layout)["experiment"] == "arithmetic"
