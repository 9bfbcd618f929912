"""Run folders made by an enemy, group by group, for hostile_files.py: settings, paths, manifests, JSON, odd
files, lines.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from reliability.hostile_edits import LAST, LOADERS, MIB, READERS, edited, written
from reliability.hostile_files import Case


def cases() -> list[Case]:
    """All of them."""
    groups = (configurations, places, manifests, json_files, odd_files, lines)
    return [case for group in groups for case in group()]


def configurations() -> Iterator[Case]:
    """Shapes and settings that nobody can hold."""
    value: Any
    sizes = (
        "vocab_size",
        "hidden_size",
        "num_layers",
        "num_heads",
        "num_kv_heads",
        "ffn_hidden_size",
        "max_seq_length",
    )
    for name in sizes:
        for value in (2**40, 10**6, 0, -1, 1e30, "64", None, True, [64]):
            harmless = name == "max_seq_length" and value == 10**6
            yield Case(
                "meta/config.json",
                f"model.{name} {value!r}",
                edited("model", name, value),
                LOADERS,
                refused=not harmless,
            )
    for name, value in (
        ("norm_eps", -1),
        ("norm_eps", 0),
        ("rope_theta", 1e308),
        ("activation", "eval"),
        ("weights", "x" * 10**6),
    ):
        yield Case("meta/config.json", f"model.{name} {value!r:.20}", edited("model", name, value), LOADERS)
    for name, value in (
        ("total_steps", 2**62),
        ("seed", 2**63),
        ("batch_size", 10**12),
        ("seq_len", 2**40),
        ("total_steps", -1),
    ):
        yield Case("meta/config.json", f"training.{name} {value}", edited("training", name, value), READERS)
    for value in ("../../outside", "\x1b[2J", "x" * 10**6, 7, None, {}, "shapes", "__init__", "os"):
        for key in ("experiment", "variant"):
            yield Case("meta/config.json", f"{key} {value!r:.20}", edited("", key, value), READERS)


def places() -> Iterator[Case]:
    """Code and paths that a configuration names."""

    def code(key: str, form: str) -> Callable[[Path], None]:
        def plant(place: Path) -> None:
            folder = place / "runs" / "tiny" / "meta"
            (folder / "evil.py").write_text(
                "import pathlib\npathlib.Path('outside/executed').write_text('yes')\n"
            )
            path = {"absolute": str(folder / "evil.py"), "relative": "runs/tiny/meta/evil.py"}[form]
            edited("", key, path)(place)

        return plant

    for key in ("experiment", "experiment_file"):
        for form in ("absolute", "relative"):
            commands = (("evaluate", "tiny"), ("diagnose", "tiny"), ("compare", "tiny", "twin"))
            yield Case(
                "what a configuration names", f"{key}, {form}", code(key, form), commands, refused=True
            )

    named = {
        "cache_dir": "outside",
        "data": ["outside/notes.txt"],
        "validation": ["/dev/zero"],
        "tokenizer": "/proc/self",
        "column": "id",
        "dataset": "somebody/everything",
    }
    for name, value in named.items():
        on_words = (("evaluate", "words"), ("diagnose", "words"))
        yield Case(
            "what a configuration names",
            f"data.{name} {value}",
            edited("data", name, value, "words"),
            on_words,
            refused=True,
        )
    yield Case(
        "what a configuration names",
        "training.start_from",
        edited("training", "start_from", "/dev/zero"),
        (("evaluate", "tiny"), ("diagnose", "tiny")),
        refused=True,
    )


def manifests() -> Iterator[Case]:
    """Manifests that name files elsewhere, or lie."""
    entry = {"bytes": 13, "sha256": "0" * 64}
    for name in (
        "../../../outside/notes.txt",
        "/etc/passwd",
        "a/b",
        "..",
        "",
        "a" * 5000,
        "\x00",
        "\x1b[2J",
        "model.safetensors/",
    ):
        files = {"model.safetensors": entry, name: entry}
        content = json.dumps({"step": 2, "files": files}).encode()
        yield Case(
            "manifests",
            f"checkpoint names {name!r:.30}",
            written(f"{LAST}/manifest.json", content, sealed=False),
            LOADERS,
        )
        run = json.dumps({"format": 1, "files": {name: entry}}).encode()
        yield Case(
            "manifests",
            f"run names {name!r:.30}",
            written("meta/manifest.json", run, sealed=False),
            READERS,
            refused=False,
        )
    sizes: tuple[object, ...] = (-1, 2**70, "13", None, [], 1.5)
    for value in sizes:
        content = json.dumps(
            {"step": 2, "files": {"model.safetensors": {"bytes": value, "sha256": value}}}
        ).encode()
        yield Case(
            "manifests", f"size {value!r}", written(f"{LAST}/manifest.json", content, sealed=False), LOADERS
        )


def json_files() -> Iterator[Case]:
    """Every file of JSON with what no reader expects."""
    contents: dict[str, bytes] = {
        "nested 100,000 deep": b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "5,000 digits": b'{"step": ' + b"1" * 5000 + b"}",
        "no object": b"[1, 2]",
        "NaN": b'{"step": NaN}',
        "no UTF-8": b'{"a": "\xff\xfe"}',
        "20 MB": b'{"a": "' + b"a" * 20 * MIB + b'"}',
        "nothing": b"",
        "null": b"null",
        "wrong kinds": b'{"step": "two", "state": 7, "files": [], "metrics": [], "criteria": 1, "run": {}}',
        "half a surrogate": b'{"state": "\\ud800", "run": "\\ud800"}',
        "1e999": b'{"step": 1e999, "updated_unix": 1e999}',
    }
    names = (
        "meta/config.json",
        "meta/manifest.json",
        "meta/provenance.json",
        "meta/dataset_fingerprint.json",
        "meta/signature.json",
        "status.json",
        "eval/verdict.json",
        "eval/diagnosis.json",
        f"{LAST}/state.json",
        f"{LAST}/manifest.json",
        "tokenizer/characters.json",
    )
    for name in names:
        for what, content in contents.items():
            yield Case(
                "JSON",
                f"{name}, {what}",
                written(name, content, sealed=name not in {"meta/manifest.json", f"{LAST}/manifest.json"}),
                READERS,
            )


def odd_files() -> Iterator[Case]:
    """Pipes, devices, folders and links where files belong."""

    def put(name: str, make: Callable[[Path, Path], object]) -> Callable[[Path], None]:
        def plant(place: Path) -> None:
            path = place / "runs" / "tiny" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                path.rename(place / "runs" / "moved")
            path.unlink(missing_ok=True)
            make(path, place)

        return plant

    kinds: dict[str, Callable[[Path, Path], object]] = {
        "pipe": lambda path, _: os.mkfifo(path),
        "folder": lambda path, _: path.mkdir(),
        "zeros": lambda path, _: path.symlink_to("/dev/zero"),
        "link out": lambda path, place: path.symlink_to(place / "outside" / "notes.txt"),
        "loop": lambda path, _: path.symlink_to(path.name),
    }
    names = (
        "meta/config.json",
        "meta/manifest.json",
        "status.json",
        ".lock",
        "metrics/scalars.jsonl",
        "samples/samples.jsonl",
        "eval/verdict.json",
        "report.html",
        "tokenizer/characters.json",
        f"{LAST}/model.safetensors",
        f"{LAST}/manifest.json",
        "eval",
        "checkpoints",
    )
    for name in names:
        for kind, make in kinds.items():
            yield Case("odd files", f"{name}, {kind}", put(name, make), READERS)
    yield Case(
        "odd files", ".lock, pipe, of a run that trains", busy, (("runs",), ("status",), ("status", "tiny"))
    )


def busy(place: Path) -> None:
    """A run that says it is training, and whose lock is a named pipe."""
    root = place / "runs" / "tiny"
    (root / "status.json").write_text(
        json.dumps({**json.loads((root / "status.json").read_text()), "state": "running"})
    )
    (root / ".lock").unlink(missing_ok=True)
    os.mkfifo(root / ".lock")


def lines() -> Iterator[Case]:
    """Lines of metrics and samples."""
    rows: dict[str, bytes] = {
        "40 MB without end": b'{"step": 1, "loss": "' + b"a" * 40 * MIB,
        "wrong kinds": b'{"step": "1"}\n{"step": 1, "loss": "x", "lr": []}\n',
        "a million steps away": b'{"step": 9007199254740993, "loss": 1e308, "lr": -1e308}\n',
        "nested": b'{"step": 1, "a": ' + b"[" * 9999 + b"}\n",
        "script": b'{"step": 1, "prompt": "<script>alert(1)</script>", "mode": "greedy", '
        b'"generated_text": "</script>"}\n',
        "escapes": b'{"step": 1, "prompt": "\\u001b[2J", "mode": "\\u202e", "generated_text": "\\u009b2J", '
        b'"anomaly_flag": "../../x"}\n',
        "infinite": b'{"step": 1, "loss": Infinity}\n{"step": 2, "loss": 1e999}\n{"step": -5, "loss": 1}\n',
        "zeros": b"\0" * MIB,
    }
    for name in (
        "metrics/scalars.jsonl",
        "metrics/quantization.jsonl",
        "eval/eval_results.jsonl",
        "samples/samples.jsonl",
    ):
        for what, content in rows.items():
            yield Case("lines", f"{name}, {what}", written(name, content), READERS[3:])
