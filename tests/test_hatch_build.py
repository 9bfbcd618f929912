"""A wheel that is built where there is a compiler needs none where it is installed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from bitnet.kernels import compiler

pytestmark = pytest.mark.slow


ROOT = Path(__file__).parents[1]


def build_wheel(target: Path, **variables: str) -> Path:
    """`pip wheel .` without the network."""
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling is not installed; pip install hatchling")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        str(ROOT),
        "--no-deps",
        "--no-build-isolation",
        "-q",
        "-w",
        str(target),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **variables}
    )
    assert done.returncode == 0, done.stderr
    return next(target.glob("*.whl"))


def test_a_wheel_holds_the_library_and_is_tagged_for_the_platform(tmp_path: Path) -> None:
    try:
        compiler.find_compiler()
    except compiler.CompileError as error:
        pytest.skip(str(error))
    wheel = build_wheel(tmp_path)
    assert "-py3-none-" in wheel.name
    assert not wheel.name.endswith("-any.whl")

    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    script = "from bitnet.kernels import library; print(library.loaded().note, library.path())"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={
            "PATH": "/nowhere",
            "CC": "/no/such/cc",
            "PYTHONPATH": str(tmp_path / "installed"),
            "HOME": str(tmp_path),
        },
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert done.stdout.startswith("built with the package ")
    assert not done.stdout.endswith("torch\n")


def test_without_a_compiler_the_wheel_is_pure(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path, CC="/no/such/cc")
    assert wheel.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "bitnet/kernels/ternary.c" in names
    assert not [name for name in names if name.endswith(".so")]
