"""Every JSON file of a run, made wrong in every way that JSON can be: one line and exit code 2, or an answer;
never a traceback.

The manifests are removed or made to fit, as an enemy would, so that it is the readers themselves that are
tried here.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import TINY_TRAIN, Command, Result

pytestmark = pytest.mark.slow


FILES = tuple(
    """
    meta/config.json meta/provenance.json meta/dataset_fingerprint.json meta/manifest.json
    meta/sessions.jsonl meta/signature.json status.json eval/verdict.json eval/diagnosis.json
    eval/eval_results.jsonl metrics/scalars.jsonl metrics/quantization.jsonl samples/samples.jsonl
    tokenizer/characters.json checkpoints/step_000008/state.json checkpoints/step_000008/manifest.json
""".split()
)
WRONG: tuple[Any, ...] = (None, True, -1, 10**30, 1e300, "\x1b[31mx", [], {}, [{"a": 1}], "9" * 400)
TEXTS: dict[str, bytes] = {
    "empty": b"",
    "binary": bytes(range(256)),
    "nested": b'{"step": 1, "a": ' + b"[" * 1000 + b"]" * 1000 + b"}",
    "5,000 digits": b'{"step": ' + b"7" * 5000 + b"}",
    "nan": b'{"step": NaN, "state": NaN}',
    "a list": b"[1, 2]",
    "a string": b'"step"',
    "null": b"null",
    "an empty object": b"{}",
}
QUICK: tuple[tuple[object, ...], ...] = (
    ("runs",),
    ("status", "tiny"),
    ("evaluate", "tiny", "--once", "--show", 0),
    ("status", "tiny", "--json"),
    ("runs", "--json"),
    ("complete", "tiny", "1 + 1 = ", "--max-new-tokens", 1),
    (*TINY_TRAIN, "--num-steps", 8, "--train.checkpoint-every", 3, "--run-id", "tiny"),
)
SLOW: tuple[tuple[object, ...], ...] = (
    ("report", "tiny", "--card"),
    ("compare", "tiny", "other"),
    ("plot", "tiny"),
    ("report", "tiny"),
)
MOST = 28  # cases of a file; benchmarks/reliability tries more


def readers_of(number: int) -> list[tuple[object, ...]]:
    """The commands that the n-th case of a file meets."""
    chosen = [QUICK[number % len(QUICK)], QUICK[(number + 3) % len(QUICK)]]
    return chosen if number % 7 else [*chosen, SLOW[number // 7 % len(SLOW)]]


def changed(content: bytes) -> Iterator[tuple[str, bytes]]:
    """The first object of a file with each key in turn deleted, or set to something of another type."""
    head, *rest = content.splitlines(keepends=True) if b"}\n{" in content else [content]
    values = json.loads(head)
    for number, (parent, key) in enumerate(places(values)):
        kept = parent[key]
        del parent[key]
        yield f"{key} deleted", json.dumps(values).encode() + b"\n" + b"".join(rest)
        for wrong in (WRONG[number % len(WRONG)], WRONG[(number * 3 + 4) % len(WRONG)]):
            parent[key] = wrong
            yield f"{key} is {str(wrong)[:20]}", json.dumps(values).encode() + b"\n" + b"".join(rest)
        parent[key] = kept


def places(values: dict[str, Any], depth: int = 0) -> Iterator[tuple[dict[str, Any], str]]:
    """Every key of an object and of the objects in it."""
    for key in list(values):
        yield values, key
        if isinstance(values.get(key), dict) and depth < 2:
            yield from places(values[key], depth + 1)


def fit(run: Path, name: str) -> None:
    """Let the manifests agree with what a file holds now."""
    path = run / name
    entry = {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    for manifest, key in ((run / "meta" / "manifest.json", name), (path.parent / "manifest.json", path.name)):
        if manifest.is_file() and manifest != path:
            values = json.loads(manifest.read_text())
            if key in values["files"]:
                values["files"][key] = entry
                manifest.write_text(json.dumps(values))


def assert_one_line_or_an_answer(result: Result, what: str) -> None:
    assert result.code in (0, 1, 2), what
    if result.code == 2:
        last = result.err.strip().splitlines()[-1]
        assert last.startswith(("bitnet: ", '{"error"')), what


@pytest.fixture
def two_runs(runs: Path, bitnet: Command) -> Path:
    """`tiny`, judged, and a copy of it."""
    shutil.copytree(runs / "tiny", runs / "other")
    assert bitnet("evaluate", "tiny", "--runs-dir", runs).code == 0
    (runs / "tiny" / "eval" / "diagnosis.json").write_text(
        json.dumps({"healthy": True, "suspect": "none", "checks": [], "step": 8})
    )
    return runs


@pytest.mark.parametrize("name", FILES)
def test_no_json_of_a_run_breaks_a_command(name: str, bitnet: Command, two_runs: Path) -> None:
    """70 tracebacks came from the JSON of strangers, and one bad neighbour broke `runs`, `status` and
    `train`.
    """
    path = two_runs / "tiny" / name
    before = {file: file.read_bytes() for file in (two_runs / "tiny").rglob("*") if file.is_file()}
    cases = [*TEXTS.items(), *changed(path.read_bytes())]
    spread = sorted(
        {round(index * (len(cases) - 1) / (MOST - 1)) for index in range(MOST)} | set(range(len(TEXTS)))
    )
    for number in spread:
        what, content = cases[number]
        for words in readers_of(number):
            path.write_bytes(content)
            fit(two_runs / "tiny", name)
            try:
                result = bitnet(*words, "--runs-dir", two_runs)
            except Exception as error:
                raise AssertionError(
                    f"{name}, {what}: {words[0]} ended with {type(error).__name__}: {error}"
                ) from error
            assert_one_line_or_an_answer(result, f"{name}, {what}: {words}: {result}")
            for file, content_before in before.items():
                if not file.exists() or file.read_bytes() != content_before:
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(content_before)
