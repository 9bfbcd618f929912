"""One atomic write, one digest, one lock, and one reader of JSON that bounds what it takes in.

A file written here is whole or absent: the content goes to a temporary file in the same folder, is forced to
disk, and takes its name by one rename. A file read here may come from anyone: it must be a regular file of a
bounded size, and JSON must be strict, nested at most MAX_DEPTH deep, and hold no integer longer than
MAX_DIGITS. Not here: the names of files in a run (run/layout.py), JSON lines (run/metrics.py), compressed
documents (corpus/documents.py).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from threading import get_native_id
from typing import IO, Any

from bitnet.errors import BitnetError, DataError, NotFoundError

MAX_JSON_BYTES = 16 << 20  # the largest file of a run that is one JSON object, a diagnosis, has some 100 kB
SKIPPED_BYTES = 1 << 20  # held at a time of a line that is too long
MAX_DEPTH = 64  # the deepest file that this program writes nests 6 deep
MAX_DIGITS = 40  # 128-bit random states have 39
RESTORE = "restore it from a copy, or start a new run"

_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', re.DOTALL)
_TEMPORARY = re.compile(r"\..+\.\d+\.tmp(\.\w+)?")
_UNUSUAL = re.compile(rf"\d{{{MAX_DIGITS}}}|[eE]\+?\d{{3}}|\\u[dD][89abAB]|NaN|Infinity")


def write_atomic(path: Path, content: bytes | str) -> None:
    """Replace a file in one step: a reader sees the old or the new one, never half. Raises OSError, the old
    file intact.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path for another library to write to; it takes the name `path` when the block ends without
    an error.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays at the end, because matplotlib chooses the format by it.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{get_native_id()}.tmp{path.suffix}")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder to fill; it takes the name `path` when the block ends without an error.

    Raises OSError where `path` exists and holds something.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)  # left by a killed process of the same number
        temporary.mkdir(parents=True)
        yield temporary
        sync(temporary)
        temporary.rename(path)
        sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Delete temporary files of killed writers. Call it only with the folder's lock held: it would delete the
    file of a writer that is still at work.
    """
    for path in folder.glob(".*.tmp*"):
        if _TEMPORARY.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Replace a JSON file in one step. NaN and infinities become null: they are not JSON."""
    write_atomic(path, json_text(value))


def json_text(value: dict[str, Any]) -> str:
    """The text that `write_json` writes."""
    return json.dumps(finite(value), indent=2, allow_nan=False) + "\n"


def finite(value: Any) -> Any:
    """The value with every float that is not finite replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def sync(path: Path) -> None:
    """Force a file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal digits, read piece by piece."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of(content: bytes | str) -> str:
    """The SHA-256 of bytes, or of a text as UTF-8, in hexadecimal digits."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def stable_number(text: str, size: int = 8) -> int:
    """A number of `size` bytes from the SHA-256 of a text: the same on every machine, unlike `hash`."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:size], "big")


def lock(file: IO[Any]) -> bool:
    """Take the exclusive lock of an open file; False where another process holds it. The system drops it with
    the process.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def exclusive(path: Path, busy: BitnetError) -> Iterator[IO[Any]]:
    """Hold the lock of a file, made if it is not there. Raises `busy` where another process holds it."""
    with open_to_append(path) as file:
        if not lock(file):
            raise busy
        yield file


def is_locked(path: Path) -> bool:
    """Whether a live process holds the lock of a file."""
    try:
        with open_regular(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (OSError, DataError):
        return False
    return False


def open_to_append(path: Path) -> IO[bytes]:
    """Open a regular file to append to and to read, made if it is not there. A link is not followed. Raises
    OSError, DataError.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(path, flags, 0o666)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "ab+")
    os.close(descriptor)
    raise DataError(f"{path} is not a regular file; delete it, or name another folder")


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading. Raises DataError for another, as a FIFO would block forever and a
    device never ends, and OSError.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    raise DataError(f"{path} is not a regular file; replace it with the file that belongs there")


def read_bytes(path: Path, limit: int, fix: str = RESTORE) -> bytes:
    """The content of a regular file of at most `limit` bytes. Raises NotFoundError, or DataError that ends
    with `fix`.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            content = file.read(limit + 1) if size <= limit else b""
    except FileNotFoundError:
        raise NotFoundError(f"{path} does not exist; {fix}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); {fix}") from None
    if size > limit or len(content) > limit:
        raise DataError(
            f"{path} has {max(size, len(content)):,} bytes, more than the {limit:,} that such a file may "
            f"have; {fix}"
        )
    return content


def lines_of(file: IO[bytes], limit: int) -> Iterator[bytes | None]:
    """The lines of a binary file, one at a time; None for a line of more than `limit` bytes, which is skipped
    in pieces.
    """
    while line := file.readline(limit + 1):
        if len(line) <= limit:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(min(limit, SKIPPED_BYTES))
        yield None


def read_text(path: Path, limit: int = MAX_JSON_BYTES, fix: str = RESTORE) -> str:
    """The UTF-8 text of a regular file of at most `limit` bytes. Raises NotFoundError, or DataError that ends
    with `fix`.
    """
    try:
        return read_bytes(path, limit, fix).decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text (byte {error.start} is {error.object[error.start]:#04x}); {fix}"
        ) from None


def read_json(path: Path, limit: int = MAX_JSON_BYTES, fix: str = RESTORE) -> dict[str, Any]:
    """The JSON object in a file. Raises NotFoundError, or DataError that names the file and ends with
    `fix`.
    """
    text = read_text(path, limit, fix)
    try:
        value = parse_json(text)
    except ValueError as error:
        raise DataError(f"{path} is not readable JSON ({error}); {fix}") from None
    if not isinstance(value, dict):
        raise DataError(f"{path} holds a {type(value).__name__} where an object belongs; {fix}")
    return value


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError for what is not strict JSON, nests too deep, or holds a
    number too long to use.
    """
    text = text.decode() if isinstance(text, bytes) else text
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth(text) > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH}")
    if not _UNUSUAL.search(text):  # the plain reader is faster, and all that our own files need
        return json.loads(text)
    value = json.loads(text, parse_int=_bounded_int, parse_float=_finite_float, parse_constant=_no_constant)
    if r"\u" in text:
        # Raises UnicodeEncodeError, which is a ValueError, for half of a surrogate pair.
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _depth(text: str) -> int:
    """How deep a JSON text nests; brackets inside strings do not count."""
    depth = deepest = 0
    for match in _BRACKETS.finditer(text):
        mark = match.group()
        depth += (mark in "[{") - (mark in "]}")
        deepest = max(deepest, depth)
    return deepest


def _bounded_int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits):,} digits, above {MAX_DIGITS}")
    return int(digits)


def _finite_float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {digits[:20]} is beyond every float")
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name}, which is not JSON")
