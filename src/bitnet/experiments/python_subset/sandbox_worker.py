"""The far side of sandbox.py: a small interpreter that runs every program in a process of its own, with the
doors shut.

It is started as a script (`python -I -S sandbox_worker.py`), reads limits and then programs as JSON lines,
and answers each with one line. It never runs a program itself: a forked child does, and says what came of it
through a pipe. Before the first line of the program runs, the child has

*   no builtins for it but print and range,
*   limits on CPU time, memory, files and processes, which the system keeps,
* on Linux (x86-64 and ARM64) a seccomp filter: the kernel ends the process at any system call but writing to
  what is open (the pipe and /dev/null), memory, and its own end. It cannot be lifted, whatever becomes of the
  interpreter,
* an audit hook that makes Python's own reports of what reaches outside (import, open, fork, ...) raise. It is
  a function of C without any state, so that there is nothing to switch off. Not all of Python reports
  (os.mkfifo does not), so this is a second best for systems without seccomp.

Only the standard library, since nothing else can be imported here. What programs may be is decided in
subset.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable
from types import FunctionType
from typing import IO, Any

LONGEST_ANSWER = 1_000_000  # bytes that are read from a child

# Linux: include/uapi/linux/{prctl,seccomp,audit,filter}.h; system calls by number:
# arch/*/include/asm/unistd.h
NO_NEW_PRIVILEGES, SET_SECCOMP, FILTER = 38, 22, 2
KILL_PROCESS, ALLOW = 0x8000_0000, 0x7FFF_0000
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06  # BPF: a word of the call's description; compare; the verdict
CALLS = {
    # write, mmap, munmap, brk, rt_sigreturn, mremap, madvise, exit, futex, exit_group
    "x86_64": (0xC000_003E, (1, 9, 11, 12, 15, 25, 28, 60, 202, 231)),
    "aarch64": (0xC000_00B7, (64, 222, 215, 214, 139, 216, 233, 93, 98, 94)),
}
"""By machine: the kernel's name for its calling convention, and the numbers of the calls that a program may
make."""


# ---- the child: shut the doors, run one program, say what came of it


def _filter(machine: str) -> list[tuple[int, int, int, int]]:
    """The BPF program (operation, jump if equal, jump if not, value): kill unless the call is one of
    CALLS.
    """
    convention, calls = CALLS[machine]
    lines = [
        (LOAD, 0, 0, 4),
        (JUMP_IF_EQUAL, 1, 0, convention),
        (RETURN, 0, 0, KILL_PROCESS),
        (LOAD, 0, 0, 0),
    ]
    for place, call in enumerate(calls):
        lines.append((JUMP_IF_EQUAL, len(calls) - place, 0, call))
    return [*lines, (RETURN, 0, 0, KILL_PROCESS), (RETURN, 0, 0, ALLOW)]


def kernel_door() -> Callable[[], bool] | None:
    """What shuts the kernel's door for this process for good, and says whether it did; None where there is no
    such door.
    """
    machine = os.uname().machine
    if sys.platform != "linux" or machine not in CALLS or sys.maxsize < 2**32:
        return None
    try:
        import ctypes
    except ImportError:
        return None

    class Line(ctypes.Structure):
        _fields_ = [
            ("operation", ctypes.c_uint16),
            ("yes", ctypes.c_uint8),
            ("no", ctypes.c_uint8),
            ("value", ctypes.c_uint32),
        ]

    class FilterProgram(ctypes.Structure):
        _fields_ = [("length", ctypes.c_uint16), ("lines", ctypes.POINTER(Line))]

    source = _filter(machine)
    lines = (Line * len(source))(*(Line(*line) for line in source))
    program = FilterProgram(len(source), lines)
    prctl = ctypes.CDLL(None).prctl
    prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    address = ctypes.addressof(program)

    def shut(_keep: object = (lines, program)) -> bool:
        return bool(
            prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0) == 0 and prctl(SET_SECCOMP, FILTER, address, 0, 0) == 0
        )

    return shut


def usable_door() -> Callable[[], bool] | None:
    """`kernel_door`, where a process that shut it was let through: a kernel may lack the filter, or a
    container forbid it.
    """
    door = kernel_door()
    if door is None:
        return None
    child = os.fork()
    if child == 0:
        os._exit(0 if door() else 1)
    return door if os.waitpid(child, 0)[1] == 0 else None


def _limit_resources(limits: dict[str, Any]) -> None:
    """What the system keeps to: memory, and nothing new. CPU: the alarm raises first, the system kills a
    second later.
    """
    memory, cpu = limits["memory_mib"] * 2**20, int(limits["cpu_seconds"]) + 2
    wanted = {"AS": memory, "DATA": memory, "CPU": cpu, "FSIZE": 0, "NOFILE": 0, "NPROC": 0, "CORE": 0}
    for name, value in wanted.items():
        with contextlib.suppress(
            AttributeError, ValueError, OSError
        ):  # a system that lacks one keeps the others
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))


def _alarm(*_: object) -> None:
    raise TimeoutError("it takes too long")


def _printer(lines: list[str], limit: int) -> Callable[..., None]:
    def collect(*values: object) -> None:
        if len(lines) >= limit:
            raise ValueError("it prints too much")
        if not all(type(value) in (int, bool) for value in values):
            raise TypeError("it prints something that is not a number")
        lines.append(" ".join(map(str, values)))

    return collect


def _results(
    question: dict[str, Any], limits: dict[str, Any], door: Callable[[], bool] | None
) -> dict[str, Any]:
    """Shut the doors and run a program. What was prepared before them is all that it can use."""
    lines: list[str] = []
    space: dict[str, Any] = {
        "__builtins__": {"print": _printer(lines, limits["printed_lines"]), "range": range}
    }
    begin = FunctionType(compile(question["source"], "program", "exec", dont_inherit=True), space)
    _limit_resources(limits)
    signal.signal(signal.SIGPROF, _alarm)
    signal.setitimer(signal.ITIMER_PROF, limits["cpu_seconds"])
    if door is not None and not door():
        raise OSError("the kernel refused the filter")
    if limits["hook"]:
        refuse: Any = os._exit  # called with two arguments where it takes one number, it always raises
        sys.addaudithook(refuse)

    begin()
    results = []
    for arguments in question["calls"]:
        lines.clear()
        value = space[question["name"]](*arguments)
        if type(value) not in (int, bool, type(None)):
            raise TypeError("it returns something that is not a number")
        results.append((value, tuple(lines)))
    return {"results": results}


def _child(
    question: dict[str, Any], limits: dict[str, Any], door: Callable[[], bool] | None, answers: int
) -> None:
    """Everything that happens in the process of one program."""
    os.setsid()
    os.dup2(answers, 3)
    os.closerange(4, 1024)
    try:
        text = json.dumps(_results(question, limits, door)).encode()
    except BaseException as error:  # noqa: BLE001  whatever a program raises is its answer
        text = json.dumps({"problem": f"{type(error).__name__}: {error!s:.80}"}).encode()
    while text:
        text = text[os.write(3, text) :]


# ---- the parent: one child per program, and one line for what it said


def _serve(questions: IO[bytes], answers: IO[bytes]) -> None:
    """Answer limits with ready, then programs with results, one line each, until there are no more."""
    limits = json.loads(questions.readline())
    door = usable_door() if limits["kernel"] else None
    answers.write(json.dumps({"ready": True, "kernel": door is not None}).encode() + b"\n")
    answers.flush()
    for line in questions:
        question = json.loads(line)
        answer = _answer(question, limits, door)
        answers.write(json.dumps({"number": question["number"], **answer}).encode() + b"\n")
        answers.flush()


def _answer(
    question: dict[str, Any], limits: dict[str, Any], door: Callable[[], bool] | None
) -> dict[str, Any]:
    """What a child makes of a program."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _child(question, limits, door, writing)
        finally:
            os._exit(0)
    os.close(writing)
    try:
        text = _read(reading, time.monotonic() + limits["wall_seconds"])
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    finally:
        os.close(reading)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if not isinstance(found, dict) or not {"results", "problem"} & found.keys():
        return {"problem": "it brought its process down"}
    return {key: found[key] for key in ("results", "problem") if key in found}


def _read(pipe: int, deadline: float) -> bytes:
    """All that a child wrote. Raises ValueError where it writes too much, or too late."""
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    text = b""
    while poll.poll(max(deadline - time.monotonic(), 0.0) * 1e3):
        piece = os.read(pipe, 65_536)
        text += piece
        if not piece:
            return text
        if len(text) > LONGEST_ANSWER:
            break
    raise ValueError("no answer, or too long a one")


def _main() -> None:
    """Move the pipes to where nothing stray is written, then serve."""
    questions, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nowhere, number)
    _serve(questions, answers)


if __name__ == "__main__":
    _main()
