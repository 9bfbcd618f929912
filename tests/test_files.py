"""Files are whole or absent, locks belong to the living, and what a stranger wrote is bounded before it is
used.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from bitnet.errors import DataError, NotFoundError, RunError
from bitnet.files import (
    exclusive,
    is_locked,
    new_folder,
    parse_json,
    read_json,
    read_text,
    replacing,
    sha256,
    sha256_of,
    stable_number,
    sweep,
    write_atomic,
    write_json,
)

HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not readable JSON"),
    "cut": (b'{"a": 1', "not readable JSON"),
    "binary": (b"\xff\xfe\x00{", "not UTF-8"),
    "a list": (b"[1]", "a list where an object belongs"),
    "a number": (b"3", "a int where an object belongs"),
    "nan": (b'{"a": NaN}', "NaN"),
    "infinity": (b'{"a": -Infinity}', "Infinity"),
    "beyond every float": (b'{"a": 1e999}', "beyond every float"),
    "5,000 digits": (b'{"a": ' + b"7" * 5000 + b"}", "5,000 digits"),
    "41 digits": (b'{"a": ' + b"7" * 41 + b"}", "41 digits"),
    "nested": (b'{"a": ' + b"[" * 1000 + b"]" * 1000 + b"}", "nested deeper"),
    "half a surrogate": (b'{"a": "\\ud800"}', "surrogate"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_json_is_one_line_with_the_file_and_the_fix(name: str, tmp_path: Path) -> None:
    content, message = HOSTILE[name]
    path = tmp_path / "some.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_json(path, fix="do this")
    assert str(path) in str(caught.value)
    assert str(caught.value).endswith("; do this")
    assert "\n" not in str(caught.value)


def test_usual_json_is_read_as_it_is() -> None:
    """Brackets in strings nest nothing, and long numbers are fine up to the bound."""
    deep = {
        "text": "[" * 500 + '"' + "{" * 500,
        "big": 10**39,
        "list": [[1, 2.5, None, True, "é😀"]] * 70,
        "small": 1e-300,
    }
    assert parse_json(json.dumps(deep)) == deep
    assert parse_json(json.dumps(deep, ensure_ascii=False)) == deep
    assert parse_json('{"pair": "\\ud83d\\ude00"}') == {"pair": "😀"}


def test_a_file_that_is_too_long_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "long.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a terabyte, on paper
    with pytest.raises(DataError, match="more than the 1,000"):
        read_json(path, limit=1000)


def test_a_pipe_and_a_device_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(DataError, match="not a regular file"):
            read_text(path)
        with pytest.raises(DataError, match="not a regular file"):
            sha256(path)


def test_a_missing_file_and_a_folder_are_said(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"none\.json does not exist"):
        read_json(tmp_path / "none.json")
    with pytest.raises(DataError, match="not a regular file"):
        read_json(tmp_path)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever fails on the way, the old content stays and nothing else is left in the folder."""
    path = tmp_path / "new" / "file.txt"
    write_atomic(path, "old")
    with pytest.raises(FileNotFoundError), replacing(path) as temporary:
        temporary.with_name("another").unlink()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            write_atomic(path, b"new")
    assert path.read_text() == "old"
    assert [one.name for one in path.parent.iterdir()] == ["file.txt"]
    write_atomic(path, b"new")
    assert path.read_text() == "new"


def test_what_a_killed_writer_left_is_swept(tmp_path: Path) -> None:
    write_atomic(tmp_path / "status.json", "{}")
    script = (
        "import os, sys; from bitnet.files import replacing; from pathlib import Path\nwith "
        "replacing(Path(sys.argv[1])) as t:"
    )
    script += "\n    t.write_text('half'); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "status.json")], check=False)
    assert len(list(tmp_path.iterdir())) == 2
    (tmp_path / ".mine.tmp").touch()
    sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"status.json", ".mine.tmp"}


def test_json_that_is_written_can_be_read(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"nan": float("nan"), "list": (1, float("inf")), "text": "é"})
    assert read_json(tmp_path / "a.json") == {"nan": None, "list": [1, None], "text": "é"}


def test_one_digest(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", "é")
    assert (
        sha256(tmp_path / "a")
        == sha256_of("é")
        == sha256_of("é".encode())
        == hashlib.sha256("é".encode()).hexdigest()
    )


def test_a_lock_belongs_to_a_living_process(tmp_path: Path) -> None:
    """The second is refused at once; a process that died leaves nothing to wait for."""
    path = tmp_path / ".lock"
    with exclusive(path, RunError("busy")):
        assert is_locked(path)
        with pytest.raises(RunError, match="busy"), exclusive(path, RunError("busy")):
            pass
    assert not is_locked(path)
    script = (
        "import fcntl, os, sys; fcntl.flock(open(sys.argv[1], 'a'), fcntl.LOCK_EX); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert not is_locked(path)
    with exclusive(path, RunError("busy")):
        assert is_locked(path)
    assert not is_locked(tmp_path / "none")


def test_a_lock_that_is_a_pipe_or_a_link_is_refused_at_once(tmp_path: Path) -> None:
    """A named pipe as the lock of one run made `bitnet runs` wait for ever; a link makes a file where it
    leads.
    """
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    assert not is_locked(tmp_path / "pipe")
    for name in ("pipe", "link"):
        with pytest.raises((DataError, OSError)), exclusive(tmp_path / name, RunError("busy")):
            pass
    assert not (tmp_path / "elsewhere").exists()


def test_a_new_folder_is_whole_or_absent(tmp_path: Path) -> None:
    wanted = tmp_path / "there"
    with suppress(ZeroDivisionError), new_folder(wanted) as folder:
        (folder / "a").write_text(str(1 / 0))
    assert list(tmp_path.iterdir()) == []

    with new_folder(wanted) as folder:
        (folder / "a").write_text("whole")
        assert not wanted.exists()
    with pytest.raises(OSError), new_folder(wanted) as folder:
        (folder / "a").write_text("another")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert (wanted / "a").read_text() == "whole"


def test_a_number_from_a_text_never_changes() -> None:
    """Held-out examples and the seeds of samples hang on it."""
    assert stable_number("25 + 17") == int(hashlib.sha256(b"25 + 17").hexdigest()[:16], 16)
    assert stable_number("25 + 17", size=4) == int(hashlib.sha256(b"25 + 17").hexdigest()[:8], 16)
