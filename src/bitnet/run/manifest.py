"""meta/manifest.json: size and SHA-256 of the files that decide what a run is, checked whenever they are
read.

It covers meta/config.json, meta/provenance.json, meta/dataset_fingerprint.json and the tokenizer, none of
which changes while a run trains. The frozen evaluation set is covered through its SHA-256 in the fingerprint,
a checkpoint by its own manifest, metric lines by the extents in a checkpoint's state. A run made before there
was a manifest is read without these checks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bitnet.errors import DataError
from bitnet.files import open_regular, read_json, sha256, sha256_of, write_json
from bitnet.run.layout import RunLayout
from bitnet.run.records import check_config

FORMAT = 1
FIX = "restore it from a copy, or begin another run under another --run-id"


def write_manifest(layout: RunLayout, config: str) -> None:
    """Record the files that are there, and the text of meta/config.json, which is written after this file."""
    paths = [layout.provenance, layout.fingerprint, *_tokenizer_files(layout)]
    files = {_name(layout, path): {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in paths}
    files[_name(layout, layout.config)] = {"bytes": len(config.encode()), "sha256": sha256_of(config)}
    write_json(layout.manifest, {"format": FORMAT, "files": files})


def read_config(layout: RunLayout) -> dict[str, Any]:
    """meta/config.json of a run. Raises NotFoundError, or DataError where it is damaged or was altered."""
    recorded = _recorded(layout)
    if recorded is not None:
        _verify(layout, layout.config, recorded)
    return check_config(read_json(layout.config, fix=FIX), str(layout.config))


def verify_run(layout: RunLayout) -> None:
    """Raise DataError unless every file is the one that the manifest records."""
    recorded = _recorded(layout)
    if recorded is None:
        return

    for path in (layout.config, layout.provenance, layout.fingerprint, *_tokenizer_files(layout)):
        _verify(layout, path, recorded)

    # Every file that is there is right; none of the tokenizer's may be missing either.
    there = {_name(layout, path) for path in _tokenizer_files(layout)}
    lost = sorted(name for name in recorded if name.startswith("tokenizer/") and name not in there)
    if lost:
        raise DataError(
            f"{layout.root / 'tokenizer'} lacks {Path(lost[0]).name}, which the run began with; {FIX}"
        )


def _recorded(layout: RunLayout) -> dict[str, Any] | None:
    """The manifest's entries; None for a run that has no manifest."""
    if not layout.manifest.exists():
        return None
    manifest = read_json(layout.manifest, fix=FIX)
    files = manifest.get("files")
    if (
        manifest.get("format") != FORMAT
        or not isinstance(files, dict)
        or not all(isinstance(entry, dict) for entry in files.values())
    ):
        raise DataError(f"{layout.manifest} is not a manifest of format {FORMAT}; {FIX}")
    return files


def _verify(layout: RunLayout, path: Path, recorded: dict[str, Any]) -> None:
    entry = recorded.get(_name(layout, path))
    if entry is None:
        raise DataError(
            f"{path} is not in {layout.manifest}, so it does not belong to the run; delete it, or {FIX}"
        )
    try:
        with open_regular(path) as file:
            size = file.seek(0, 2)
        altered = size != entry.get("bytes") or sha256(path) != entry.get("sha256")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); {FIX}") from None
    if altered:
        raise DataError(
            f"{path} was altered since the run began (its SHA-256 is not the one in {layout.manifest}); {FIX}"
        )


def _tokenizer_files(layout: RunLayout) -> list[Path]:
    return sorted(layout.tokenizer.iterdir()) if layout.tokenizer.is_dir() else []


def _name(layout: RunLayout, path: Path) -> str:
    return path.relative_to(layout.root).as_posix()
