"""A wheel that is built where there is a compiler needs none where it is installed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from bitnet.kernels import compiler, library

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


def test_an_installed_wheel_runs_its_kernels_without_a_compiler(tmp_path: Path) -> None:
    """In a fresh environment that has nothing else; NumPy and torch are those of this one."""
    try:
        compiler.find_compiler()
    except compiler.CompileError as error:
        pytest.skip(str(error))
    wheel, place = build_wheel(tmp_path), tmp_path / "venv"
    venv.create(place, with_pip=False)
    here = sys.executable
    python = str(place / "bin" / "python")
    words = [here, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "-q", str(wheel)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

    script = """
import bitnet, numpy as np
from bitnet.kernels import arrays, library
codes = np.random.default_rng(0).integers(-1, 2, (40, 50), dtype=np.int8)
x = np.arange(-100, 100, dtype=np.int8).reshape(4, 50)
assert np.array_equal(arrays.sums(arrays.pack(codes), x), x.astype(int) @ codes.T.astype(int))
print(bitnet.__file__, library.loaded().note, library.path(), sep="|")
"""
    bare = {"PATH": "/nowhere", "HOME": str(tmp_path), "PYTHONPATH": sysconfig.get_path("purelib")}
    done = subprocess.run(
        [python, "-c", script], env=bare, capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    file, note, path = done.stdout.strip().split("|")
    assert file.startswith(str(place))
    assert note == "built with the package"
    assert path in library.PATHS
    assert not list(tmp_path.glob(".cache/bitnet/*")), "nothing was compiled"


def test_without_a_compiler_the_wheel_is_pure(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path, CC="/no/such/cc")
    assert wheel.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "bitnet/kernels/ternary.c" in names
    assert not [name for name in names if name.endswith(".so")]
