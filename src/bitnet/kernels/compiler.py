"""From ternary.c to a shared library, with whatever C compiler the machine has.

Used at run time by library.py, and by the build hook (hatch_build.py) when a wheel is made. The instruction
sets are chosen inside the source and at run time, so that the flags name none: a library runs on every
processor of its machine type. The source compiles in four parts at the same time, because somebody waits for
it. Not here: where a library is kept and whether it may be loaded (library.py).
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bitnet.files import sha256_of

SOURCE = Path(__file__).with_name("ternary.c")

# Contraction off: a * b + c must round twice on every machine, or the codes would differ between processors.
FLAGS = tuple("-std=gnu99 -fPIC -pthread -ffp-contract=off -fno-math-errno -fvisibility=hidden".split())
# Of each PART of the source: shared, scalar, 256 bits, 512 bits. gcc halves the speed of scalar code by -O3.
OPTIMIZATION = ("-O3", "-O2", "-O3", "-O3")
LIBRARIES = ("-lm",)
TIMEOUT_S = 120  # it takes a second; a compiler that hangs must not hang training


class CompileError(Exception):
    """There is no library to be had from this compiler. The text says why, in one line without a full
    stop.
    """


def identity() -> str:
    """Twelve hexadecimal digits that change with the source, the flags and the kind of machine."""
    parts = [
        SOURCE.read_bytes(),
        " ".join((*FLAGS, *OPTIMIZATION, *LIBRARIES)).encode(),
        f"{sys.platform} {platform.machine()}".encode(),
    ]
    return sha256_of(b"\0".join(parts))[:12]


def find_compiler() -> list[str]:
    """The command of the C compiler: the variable CC, else cc, gcc or clang. Raises CompileError."""
    named = shlex.split(os.environ.get("CC", ""))
    for command in [named] if named else [["cc"], ["gcc"], ["clang"]]:
        if shutil.which(command[0]):
            return command
    raise CompileError(
        f"no C compiler: CC={named[0]} is not installed"
        if named
        else "no C compiler: cc, gcc and clang are not installed"
    )


def compile_library(target: Path) -> None:
    """Compile ternary.c into the shared library `target`. Raises CompileError."""
    compiler = find_compiler()
    with tempfile.TemporaryDirectory(prefix="bitnet-kernels-") as folder:
        parts = [Path(folder) / f"{part}.o" for part, _ in enumerate(OPTIMIZATION, start=1)]
        calls = [
            [
                *compiler,
                level,
                *FLAGS,
                f"-DPART={object_file.stem}",
                "-c",
                str(SOURCE),
                "-o",
                str(object_file),
            ]
            for level, object_file in zip(OPTIMIZATION, parts, strict=True)
        ]
        with ThreadPoolExecutor(len(calls)) as pool:
            list(pool.map(_call, calls, parts))
        _call([*compiler, *FLAGS, "-shared", "-o", str(target), *map(str, parts), *LIBRARIES], target)


def _call(command: list[str], written: Path) -> None:
    """Run the compiler, which writes a file. Raises CompileError."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise CompileError(f"the C compiler {command[0]} did not finish within {TIMEOUT_S} s") from None
    except OSError as error:
        raise CompileError(f"the C compiler {command[0]} cannot be run ({error.strerror})") from None
    if done.returncode != 0 or not written.is_file():
        raise CompileError(f"the C compiler {command[0]} failed ({_first_error(done.stderr)})")


def _first_error(text: str) -> str:
    """The line of a compiler's output that says what went wrong, cut to a readable length."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    wrong = [line for line in lines if "error" in line.lower()] or lines or ["it printed nothing"]
    return wrong[0][:160]
