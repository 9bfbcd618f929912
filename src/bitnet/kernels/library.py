"""The compiled kernels of this process: find them, compile them, or do without; and which path of them runs.

A library is looked for in this order, once per process:

1. beside ternary.c, where a wheel that was built with a compiler has it;
2. in the cache folder, `$XDG_CACHE_HOME/bitnet/kernels-<identity>` (default ~/.cache), where an earlier
   process compiled it;
3. compiled now (two seconds) into that folder, or, where that folder cannot be written or others could
   write to it, into a private temporary folder for this process alone.

Without any, `path()` is "torch" and bitnet.kernels.ops computes the same numbers with torch. BITNET_KERNEL
forces a path. Loading a library runs what is in it, so a cached one is loaded only if nobody but this user
and root could have put it there, and if its content has the digest that its name says. Nothing here imports
torch or numpy.
"""

from __future__ import annotations

import ctypes
import os
import stat
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from bitnet.errors import ConfigError, did_you_mean
from bitnet.files import replacing, sha256, sha256_of
from bitnet.kernels.compiler import SOURCE, CompileError, compile_library, identity

VARIABLE = "BITNET_KERNEL"
PATHS = ("scalar", "avx2", "avx_vnni", "avx512_vnni", "neon")  # in the order of the enum in ternary.c
FASTEST_FIRST = ("avx512_vnni", "avx_vnni", "avx2", "neon", "scalar")
TORCH = "torch"

_loading = threading.Lock()
_pointer, _int, _size, _float = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_float
_SIGNATURES: dict[str, list[type]] = {
    "ternary_pack": [_pointer, _size, _size, _int, _pointer, _int],
    "ternary_unpack": [_pointer, _size, _size, _pointer],
    "ternary_quantize": [
        _int,
        _pointer,
        _int,
        _size,
        _size,
        _pointer,
        _float,
        _pointer,
        _pointer,
        _pointer,
        _int,
    ],
    "ternary_sums": [_int, _pointer, _size, _size, _pointer, _size, _pointer, _int],
    "ternary_product": [_int, _pointer, _size, _size, _pointer, _size, _pointer, _pointer, _pointer, _int],
    **{
        f"training_{name}": [_int, _pointer, _int]
        for name in ("gradient", "gate", "norm", "rotary", "cross_entropy", "pack")
    },
    "decoder_pack": [_size, _pointer, _size, _size, _pointer, _pointer, _int],
    "decoder_ternarize": [_pointer, _size, _size, _pointer, _pointer],
    "decoder_workspace": [_pointer, _size],
    "decoder_cache_floats": [_pointer, _size],
    "decoder_forward": [_int, _pointer, _pointer, _pointer, _int],
}
_RESULTS: dict[str, type | None] = {
    "decoder_ternarize": None,
    "decoder_workspace": _size,
    "decoder_cache_floats": _size,
}


@dataclass(frozen=True)
class Loaded:
    """library: None where there is none; note: where it came from, or why there is none; paths: those of this
    CPU.
    """

    library: ctypes.CDLL | None
    note: str
    paths: tuple[str, ...] = ()


def loaded() -> Loaded:
    """The library of this process, found or compiled at the first call."""
    with _loading:
        return _load_once()


def path() -> str:
    """The path that products take here: a name of PATHS, or "torch". Raises ConfigError where BITNET_KERNEL
    cannot be obeyed.
    """
    return _choose(os.environ.get(VARIABLE, ""))


def describe() -> str:
    """One line for people: the path taken, and where the library came from or why there is none."""
    if path() == TORCH and os.environ.get(VARIABLE) == TORCH:
        return f"kernels: torch, because {VARIABLE}=torch"
    return f"kernels: {path()}, {loaded().note}"


def kernels() -> tuple[ctypes.CDLL, int]:
    """The library, and the number of the path to pass to it. Raises ConfigError where torch does the work."""
    name = path()
    library = None if name == TORCH else loaded().library
    if library is None:
        raise ConfigError(
            f"the compiled kernels are not in use here ({describe()}); use bitnet.kernels.ops, which needs "
            "none"
        )
    return library, PATHS.index(name)


@lru_cache
def _choose(wanted: str) -> str:
    if wanted == TORCH:
        return TORCH
    if wanted and wanted not in PATHS:
        raise ConfigError(
            f'{VARIABLE}="{wanted}" names no kernel path.{did_you_mean(wanted, (*PATHS, TORCH))}'
        )

    here = loaded()
    if not wanted:
        return next((name for name in FASTEST_FIRST if name in here.paths), TORCH)
    if here.library is None:
        raise ConfigError(
            f"{VARIABLE}={wanted} needs the compiled kernels ({here.note}); unset it, or set it to torch"
        )
    if wanted not in here.paths:
        raise ConfigError(
            f"{VARIABLE}={wanted}: this CPU or build has only {', '.join(here.paths)}; unset it, or set it "
            "to one of these"
        )
    return wanted


@cache
def _load_once() -> Loaded:
    built = SOURCE.with_name(f"ternary-{identity()}.so")
    if built.is_file():
        try:
            return _open(built, "built with the package")
        except OSError:
            pass  # a wheel for another system: compile

    folder, doubt = _cache_folder()
    if folder is not None:
        for found in _intact(folder):
            try:
                return _open(found, f"in {folder}")
            except OSError:
                continue  # on a file system that forbids execution, for one
    try:
        return _compile(folder, doubt)
    except CompileError as error:
        return Loaded(None, f"{error}; products are slower without it")
    except OSError as error:
        return Loaded(
            None, f"the compiled library cannot be stored or loaded ({error}); products are slower without it"
        )


def _compile(folder: Path | None, doubt: str) -> Loaded:
    """Compile in a private temporary folder, then keep the library under a name that holds its digest, and
    load it.
    """
    with tempfile.TemporaryDirectory(prefix="bitnet-kernels-") as private:
        fresh = Path(private) / "ternary.so"
        compile_library(fresh)
        if folder is not None:
            try:
                kept = _keep(fresh.read_bytes(), folder)
                return _open(kept, f"in {folder}")
            except OSError as error:
                doubt = f"{folder} cannot be used ({error.strerror or error})"
        return _open(
            fresh, f"compiled for this process only: {doubt}"
        )  # it stays loaded when the file is gone


def _keep(content: bytes, folder: Path) -> Path:
    """Write the library aside and rename it: processes that compile at once replace each other's equal
    file.
    """
    target = folder / f"ternary-{sha256_of(content)}.so"
    with replacing(target) as temporary:
        temporary.write_bytes(content)
        temporary.chmod(0o700)  # whatever the umask
    return target


def _open(file: Path, note: str) -> Loaded:
    """Load a library and declare its functions. Raises OSError."""
    library = ctypes.CDLL(str(file))
    try:
        for name, types in _SIGNATURES.items():
            getattr(library, name).argtypes = types
            getattr(library, name).restype = _RESULTS.get(name, _int)
        library.ternary_paths.restype = ctypes.c_uint
        found = library.ternary_paths()
    except AttributeError as error:
        raise OSError(str(error)) from None
    return Loaded(library, note, tuple(name for bit, name in enumerate(PATHS) if found >> bit & 1))


def _cache_folder() -> tuple[Path | None, str]:
    """The folder for compiled libraries, or None and the reason why it cannot be used."""
    try:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(home) / "bitnet" / f"kernels-{identity()}"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = folder.resolve(strict=True)
        doubt = _doubt(folder)
    except (OSError, RuntimeError) as error:  # RuntimeError: a user without a home
        return None, f"the cache folder cannot be made ({getattr(error, 'strerror', None) or error})"
    return (None, doubt) if doubt else (folder, "")


def _doubt(folder: Path) -> str:
    """Why someone else could have put a file there; empty where nobody could. Looks at every folder above it
    as well.
    """
    for place in (folder, *folder.parents):
        about = place.lstat()
        if about.st_uid not in (0, os.geteuid()) or (place == folder and about.st_uid != os.geteuid()):
            return f"{place} belongs to another user; set XDG_CACHE_HOME to a folder of yours"
        sticky = (
            place != folder and about.st_mode & stat.S_ISVTX
        )  # as /tmp: others cannot rename what is ours in it
        if about.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not sticky:
            return f"other users can write to {place}; run chmod go-w on it, or set XDG_CACHE_HOME"
    return ""


def _intact(folder: Path) -> Iterator[Path]:
    """Libraries in a trusted folder that are ours and whole: a file cut short would crash the interpreter
    when it is loaded.
    """
    for file in sorted(folder.glob("ternary-*.so")):
        about = file.lstat()
        ours = (
            stat.S_ISREG(about.st_mode)
            and about.st_uid == os.geteuid()
            and not about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        )
        if ours and file.name == f"ternary-{sha256(file)}.so":
            yield file
