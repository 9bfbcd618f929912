"""Any compiler's trouble is one line, and the library depends on what it is made from."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import pytest

from bitnet.kernels import compiler, library
from bitnet.kernels.compiler import CompileError, compile_library, identity


def script(folder: Path, text: str) -> str:
    """An executable that stands for a C compiler."""
    file = folder / "fake-cc"
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o700)
    return str(file)


@pytest.mark.slow
def test_the_parts_linked_are_the_whole_source(tmp_path: Path) -> None:
    """Each part has its own path and no part is missing: the same symbols and paths as in one piece."""
    try:
        command = compiler.find_compiler()
    except CompileError as error:
        pytest.skip(str(error))
    whole, parts = tmp_path / "whole.so", tmp_path / "parts.so"
    subprocess.run(
        [*command, "-O0", *compiler.FLAGS, "-shared", "-o", whole, compiler.SOURCE, "-lm"], check=True
    )
    compile_library(parts)
    assert ctypes.CDLL(str(parts)).ternary_paths() == ctypes.CDLL(str(whole)).ternary_paths()
    for name in library._SIGNATURES:
        assert hasattr(ctypes.CDLL(str(parts)), name)


@pytest.mark.slow
def test_the_source_compiles_without_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "FLAGS", (*compiler.FLAGS, "-Wall", "-Wextra", "-Werror"))
    try:
        compiler.find_compiler()
    except CompileError as error:
        pytest.skip(str(error))
    compile_library(tmp_path / "ternary.so")
    assert ctypes.CDLL(str(tmp_path / "ternary.so")).ternary_paths() & 1


def test_the_flags_name_no_processor() -> None:
    """A library is shared by every machine that sees the cache folder or installs the wheel."""
    assert not [flag for flag in compiler.FLAGS if flag.startswith("-m")]


def test_the_identity_changes_with_source_flags_and_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = {identity()}
    monkeypatch.setattr(compiler, "FLAGS", ("-O0",))
    seen.add(identity())
    other = tmp_path / "ternary.c"
    other.write_text("int other;")
    monkeypatch.setattr(compiler, "SOURCE", other)
    seen.add(identity())
    monkeypatch.setattr(compiler.platform, "machine", lambda: "riscv64")
    seen.add(identity())
    assert len(seen) == 4


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CC", "/no/such/cc -O1")
    with pytest.raises(CompileError, match="CC=/no/such/cc is not installed"):
        compile_library(tmp_path / "ternary.so")
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CompileError, match="cc, gcc and clang are not installed"):
        compile_library(tmp_path / "ternary.so")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "echo 'x.c: In function f' >&2; echo 'x.c:3: fatal error: pthread.h: No such file' >&2; exit 1",
            r"fatal error: pthread\.h",
        ),
        ("exit 3", "it printed nothing"),
        ("exit 0", "it printed nothing"),  # and it wrote no file
        ("sleep 5", "did not finish within 0.2 s"),
    ],
)
def test_a_failing_compiler_says_why_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, message: str
) -> None:
    monkeypatch.setenv("CC", script(tmp_path, text))
    monkeypatch.setattr(compiler, "TIMEOUT_S", 0.2)
    with pytest.raises(CompileError, match=message) as caught:
        compile_library(tmp_path / "ternary.so")
    assert "\n" not in str(caught.value)
