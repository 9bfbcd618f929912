"""Edits of a small run that leave everything else whole, as an enemy makes who knows the formats: the
manifests fit again.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

from bitnet.files import sha256
from bitnet.run.layout import RunLayout
from bitnet.run.manifest import write_manifest

MIB = 1 << 20
LAST = "checkpoints/step_000002"
READERS = (
    ("evaluate", "tiny"),
    ("complete", "tiny", "1 + 1 = "),
    ("chat", "tiny", "-p", "1 + 1 = "),
    ("report", "tiny"),
    ("status", "tiny"),
    ("plot", "tiny"),
    ("diagnose", "tiny"),
    ("compare", "tiny", "twin"),
    ("runs",),
    ("report", "tiny", "--card"),
)
"""Commands that read a run."""
LOADERS = READERS[:3]
"""Those that load its weights."""


def reseal(place: Path, run: str = "tiny") -> None:
    """Make meta/manifest.json and the checkpoints' manifests of a run fit again."""
    layout = RunLayout(place / "runs" / run)
    with contextlib.suppress(UnicodeDecodeError):  # no text, for which no manifest can be made to fit
        write_manifest(layout, layout.config.read_text(encoding="utf-8"))
    for folder in layout.checkpoints.iterdir():
        files = {
            path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)}
            for path in sorted(folder.iterdir())
            if path.name != "manifest.json" and path.is_file()
        }
        (folder / "manifest.json").write_text(json.dumps({"step": int(folder.name[5:]), "files": files}))


def edited(section: str, name: str, value: object, run: str = "tiny") -> Callable[[Path], None]:
    """meta/config.json with one value changed."""

    def plant(place: Path) -> None:
        path = place / "runs" / run / "meta" / "config.json"
        config = json.loads(path.read_text())
        (config[section] if section else config)[name] = value
        path.write_text(json.dumps(config))
        reseal(place, run)

    return plant


def written(name: str, content: bytes, *, sealed: bool = True) -> Callable[[Path], None]:
    """A file of the run replaced."""

    def plant(place: Path) -> None:
        path = place / "runs" / "tiny" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        if sealed:
            reseal(place)

    return plant


def given(name: str, content: bytes) -> Callable[[Path], None]:
    """A file of data beside the runs, in a folder of its own."""

    def plant(place: Path) -> None:
        (place / "given").mkdir()
        (place / "given" / name).write_bytes(content)

    return plant
