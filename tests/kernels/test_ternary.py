"""The C source where Python tests do not reach: under sanitizers, and on another processor."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bitnet.kernels import compiler

pytestmark = pytest.mark.slow


HERE = Path(__file__).parent
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def build(target: Path, command: str, *flags: str) -> list[str]:
    """compare_paths.c as a program; skips where the compiler or what the flags need is not installed."""
    if shutil.which(command) is None:
        pytest.skip(f"{command} is not installed")
    words = [
        command,
        "-O2",
        "-g",
        "-std=gnu99",
        "-pthread",
        "-ffp-contract=off",
        *flags,
        f"-I{compiler.SOURCE.parent}",
    ]
    done = subprocess.run(
        [*words, str(HERE / "compare_paths.c"), "-o", str(target), "-lm"],
        capture_output=True,
        text=True,
        check=False,
    )
    if "cannot find" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[0])
    assert done.returncode == 0, done.stderr
    return [str(target)]


def outcome(words: list[str]) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)
    if (
        "unexpected memory mapping" in done.stderr
    ):  # ThreadSanitizer on kernels with more random bits than it knows
        pytest.skip(done.stderr.strip().splitlines()[0])
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize(
    "sanitizers", [SANITIZERS, ["-fsanitize=thread"]], ids=["address and undefined", "thread"]
)
def test_every_path_is_clean_under_the_sanitizers(tmp_path: Path, sanitizers: list[str]) -> None:
    said = outcome(build(tmp_path / "compare_paths", "gcc", *sanitizers))
    assert said.startswith("scalar ")
    assert said.endswith(" 0 failures\n")


def test_the_neon_path_equals_the_scalar_one(tmp_path: Path) -> None:
    """Compiled for Arm and run by an emulator; on an Arm machine test_arrays.py runs it as well."""
    if shutil.which("qemu-aarch64-static") is None:
        pytest.skip("qemu-aarch64-static is not installed")
    program = build(tmp_path / "compare_paths", "aarch64-linux-gnu-gcc", "-static")
    said = outcome(["qemu-aarch64-static", "-cpu", "max", *program])
    assert said.startswith("scalar neon ")
    assert said.endswith(" 0 failures\n")
    old = outcome(["qemu-aarch64-static", "-cpu", "cortex-a53", *program])  # without dot products
    assert old.startswith("scalar ")
    assert "neon" not in old


def test_the_python_tests_pass_under_the_sanitizers(tmp_path: Path) -> None:
    """test_arrays.py on a library whose every access is checked. Leaks are not looked for: the interpreter
    has its own.
    """
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    found = [
        Path(
            subprocess.run(
                ["gcc", f"-print-file-name={name}.so"], capture_output=True, text=True, check=True
            ).stdout.strip()
        )
        for name in ("libasan", "libubsan", "libstdc++")
    ]
    if not all(path.is_absolute() for path in found):
        pytest.skip("the sanitizers' libraries are not installed")
    home = tmp_path / "cache"
    home.mkdir(mode=0o700)
    script = (
        "import sys, pytest; from bitnet.kernels import compiler;"
        f"compiler.FLAGS = (*compiler.FLAGS, '-g', '-O1', *{SANITIZERS!r});"  # -O3 takes a minute here
        "sys.exit(pytest.main(sys.argv[1:]))"
    )
    options = ["-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(HERE), "--noconftest"]
    done = subprocess.run(
        [sys.executable, "-c", script, *options, str(HERE / "test_arrays.py")],
        env={
            **os.environ,
            "LD_PRELOAD": ":".join(map(str, found)),
            "ASAN_OPTIONS": "detect_leaks=0",
            "XDG_CACHE_HOME": str(home),
            "CC": "gcc",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert " passed" in done.stdout
    assert list(home.glob("bitnet/kernels-*/ternary-*.so")), "the checked library was not the one used"
