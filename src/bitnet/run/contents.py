"""What may be in a run folder: regular files and folders, and links that stay inside. Checked before use.

A run folder may come from somebody else. Opening a named pipe waits for ever, a device never ends, and a link
that leads outside has this program read, or write, where nobody asked it to: `eval` as a link to a folder of
the user's, `metrics/scalars.jsonl` as a link to a file that training would append to. Not here: what is in
the files.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from bitnet.errors import RunError

MOST_ENTRIES = 100_000  # files and folders of one run; a run of 400,000 updates has some hundred
KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def check_contents(root: Path) -> None:
    """Raise RunError for a pipe, socket or device in a run folder, a link that leads outside, or too many
    files.
    """
    inside = Path(os.path.realpath(root))
    for number, entry in enumerate(_entries(root)):
        if number >= MOST_ENTRIES:
            raise RunError(
                f"{root} holds more than {MOST_ENTRIES:,} files, which no run has; name a run's own folder"
            )
        _check(entry, inside)


def _entries(root: Path) -> Iterator[os.DirEntry[str]]:
    """Everything below a folder; links are not followed. A folder that cannot be read is skipped."""
    folders = [str(root)]
    while folders:
        with suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                yield entry
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)


def _check(entry: os.DirEntry[str], inside: Path) -> None:
    """Raise RunError unless an entry is a regular file, a folder, or a link that stays inside the run."""
    if entry.is_symlink() and not Path(os.path.realpath(entry.path)).is_relative_to(inside):
        raise RunError(
            f"{entry.path} is a link that leads out of the run; replace it with the file or folder that "
            "belongs there"
        )
    try:
        kind = stat.S_IFMT(entry.stat(follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return  # a running training has renamed or deleted it meanwhile
    if kind in KINDS:
        raise RunError(f"{entry.path} is {KINDS[kind]}; delete it, or restore the file that belongs there")
