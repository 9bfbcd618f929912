"""Checkpoints that somebody made to do harm: their manifest matches, and what it vouches for is false."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitnet.errors import DataError
from bitnet.run.eval_set import load_frozen_set
from bitnet.run.layout import RunLayout
from conftest import Command

Header = dict[str, Any]


def newest(runs: Path) -> Path:
    """The one checkpoint that is left of the run `tiny`."""
    steps = sorted((runs / "tiny" / "checkpoints").iterdir())
    for step in steps[:-1]:
        shutil.rmtree(step)
    return steps[-1]


def vouch(folder: Path, **more: dict[str, Any]) -> None:
    """Make the manifest agree with the files, and name `more`."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in manifest["files"]:
        content = (folder / name).read_bytes()
        manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest["files"] |= more
    (folder / "manifest.json").write_text(json.dumps(manifest))


def rewrite(path: Path, change: Callable[[Header, list[str]], None]) -> None:
    """Change the header of a safetensors file and leave its data."""
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    change(header, sorted(name for name in header if name != "__metadata__"))
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def huge_shape(header: Header, names: list[str]) -> None:
    header[names[0]]["shape"] = [2**40]


def overlapping(header: Header, names: list[str]) -> None:
    header[names[0]]["data_offsets"] = header[names[1]]["data_offsets"]


def integers(header: Header, names: list[str]) -> None:
    header[names[0]]["dtype"] = "I32"


def renamed(header: Header, names: list[str]) -> None:
    header["somebody.elses.weight"] = header.pop(names[0])


CHANGES = [huge_shape, overlapping, integers, renamed]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("verb", ["complete", "evaluate"])
def test_a_false_header_is_one_line(change: Any, verb: str, bitnet: Command, runs: Path) -> None:
    """A shape of 2**40, data that overlaps and a foreign name ended in a traceback; integers were loaded as
    weights.
    """
    folder = newest(runs)
    rewrite(folder / "model.safetensors", change)
    vouch(folder)
    result = bitnet(verb, "tiny", *(["1 + 1 = "] if verb == "complete" else []), "--runs-dir", runs)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "model.safetensors" in result.err or "does not fit the model" in result.err


@pytest.mark.slow
@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "observers.safetensors"])
def test_a_header_longer_than_the_file_is_one_line_when_training_goes_on(
    file: str, bitnet: Command, runs: Path
) -> None:
    folder = newest(runs)
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(struct.pack("<Q", 2**60) + content[8:])
    vouch(folder)
    (runs / "tiny" / "status.json").write_text(
        '{"state": "stopped", "why": null, "step": 8, "total_steps": 8, "pid": 1}'
    )
    result = bitnet("diagnose", "tiny", "--runs-dir", runs)
    assert result.code in (1, 2)
    assert "Traceback" not in result.err


@pytest.mark.parametrize("name", ["../../../../stolen", "/etc/hostname", ".hidden", "a/b"])
def test_a_manifest_names_files_of_its_own_folder_only(name: str, bitnet: Command, runs: Path) -> None:
    """Names that led elsewhere were followed, and the files there were read and hashed."""
    folder = newest(runs)
    vouch(folder, **{name: {"bytes": 1, "sha256": "0" * 64}})
    result = bitnet("complete", "tiny", "1 + 1 = ", "--runs-dir", runs)
    assert result.code == 2
    assert "which is no file of a checkpoint" in result.err


def test_a_configuration_larger_than_its_weights_builds_no_model(
    bitnet: Command, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every setting may be within its bound while the model that they describe has a petabyte."""
    import bitnet.trained_model as trained

    def build(*_: Any) -> None:
        raise AssertionError("a model was built")

    config = json.loads((runs / "tiny" / "meta" / "config.json").read_text())
    config["model"] |= {"num_layers": 4096, "hidden_size": 65536, "ffn_hidden_size": 524288}
    (runs / "tiny" / "meta" / "config.json").write_text(json.dumps(config))
    (runs / "tiny" / "meta" / "manifest.json").unlink()
    monkeypatch.setattr(trained, "BitNetTransformer", build)
    result = bitnet("complete", "tiny", "1 + 1 = ", "--runs-dir", runs)
    assert result.code == 2
    assert "use the run's own checkpoint and configuration" in result.err


def test_a_terabyte_on_paper_is_not_hashed(bitnet: Command, runs: Path) -> None:
    """A sparse file takes no room where it comes from, hours to hash, and more memory than there is."""
    folder = newest(runs)
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(1 << 43)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["model.safetensors"]["bytes"] = 1 << 43
    (folder / "manifest.json").write_text(json.dumps(manifest))
    result = bitnet("complete", "tiny", "1 + 1 = ", "--runs-dir", runs)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "model.safetensors has 8.8 TB" in result.err
    with (runs / "tiny" / "eval" / "frozen_set.safetensors").open("r+b") as file:
        file.truncate(1 << 43)
    with pytest.raises(DataError, match=r"frozen_set\.safetensors has 8\.8 TB"):
        load_frozen_set(RunLayout(runs / "tiny"))
