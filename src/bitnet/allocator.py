"""Memory: how much the machine has, and what glibc does with what was freed.

Two kinds of work want opposite things of glibc; on other systems nothing happens here.

Training asks for the same tensors at every update. Mapped afresh each time they would be faulted in again,
page by page: keeping freed memory made an update of the quick arithmetic model a third faster (docs/log.md).
Preparing data moves blocks of documents through queues. In a heap they leave holes, which grow with the
corpus; mapped by themselves they vanish.
"""

from __future__ import annotations

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # parameters of mallopt (malloc.h)


def keep_freed_memory() -> None:
    """Ask glibc to keep freed memory for reuse."""
    _set({_M_MMAP_THRESHOLD: 1 << 30, _M_TRIM_THRESHOLD: (1 << 31) - 1})


def return_freed_memory() -> None:
    """Ask glibc to map each block above 128 KiB by itself, so that it goes back to the system when freed."""
    _set({_M_MMAP_THRESHOLD: 1 << 17, _M_TRIM_THRESHOLD: 1 << 17})


def machine_memory_bytes() -> int:
    """Memory that is built into this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _set(values: dict[int, int]) -> None:
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        for parameter, value in values.items():
            mallopt(parameter, value)
