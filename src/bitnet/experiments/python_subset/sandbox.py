"""Runs small untrusted programs, which a model wrote, and reports what they return and print.

There are three walls. A test tries each alone, with the others open
(tests/experiments/python_subset/test_sandbox.py):

1. `allowed_syntax.refusal` reads the syntax tree and lets through one function of integers: assignments, if,
   for, while, return, arithmetic, comparisons, and calls of print and range. No attributes, no imports, no
   strings, no other calls.
2. Each program runs in a process of its own, forked from a small interpreter that never runs one itself
   (sandbox_worker.py). CPU time, memory, files and processes are limited by the system. On Linux (x86-64,
   ARM64) the kernel ends that process at any system call but writing to its pipe, memory, and its own end, so
   that a program that owns the whole interpreter still reaches nothing. Elsewhere, and where the kernel has
   no seccomp, an audit hook refuses what Python itself reports (import, open, fork, ...): that is not all of
   what reaches outside, so there wall 1 has to hold.
3. A process only ever answers what a program returned and printed. What is right never leaves this process,
   so a program cannot forge a verdict. An answer that is late, too long or garbled fails that program alone.

Not limited: the memory of a process on macOS, which has no such limit. Not here: what runs over there
(sandbox_worker.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from bitnet.errors import BitnetError

if TYPE_CHECKING:
    import subprocess

LONGEST_ANSWER = 1_100_000  # bytes of one answer; a worker reads at most 1,000,000 from a program
GRACE_SECONDS = 5.0  # beyond a program's wall time, until its worker is taken for dead


class Program(NamedTuple):
    """Source that defines a function, its name, and the arguments of the calls to make."""

    source: str
    name: str
    calls: Sequence[tuple[int, ...]]


class CallResult(NamedTuple):
    """What one call returned, and the lines it printed."""

    value: int | bool | None
    printed: tuple[str, ...]

    def same_as(self, other: CallResult) -> bool:
        """Equal, and True is not 1."""
        return self == other and type(self.value) is type(other.value)


class Outcome(NamedTuple):
    """results: one per call, or None with the reason why there are none."""

    results: tuple[CallResult, ...] | None
    problem: str | None = None


@dataclass(frozen=True)
class Limits:
    """Of one program. kernel, hook: the two doors of wall 2; both are shut, except where a test tries one
    alone.
    """

    cpu_seconds: float = 0.5
    wall_seconds: float = 20.0
    printed_lines: int = 1_000
    memory_mib: int = 256
    kernel: bool = True
    hook: bool = True


def run_programs(programs: Sequence[Program], limits: Limits = Limits()) -> list[Outcome]:
    """Outcomes in the order of the programs. Refused ones are never run."""
    from bitnet.experiments.python_subset.allowed_syntax import refusal

    outcomes = []
    with Worker(limits) as worker:
        for program in programs:
            problem = refusal(program.source, program.name)
            outcomes.append(worker.run(program) if problem is None else Outcome(None, problem))
    return outcomes


# ---- walls 2 and 3, this side: start a worker, ask, and believe nothing that comes late or garbled


class Worker:
    """A small interpreter that runs programs, each in a process of its own. Started at the first program, and
    again if it dies.

    kernel: whether the kernel shuts its door for programs, known once it has started.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.process: subprocess.Popen[bytes] | None = None
        self.number = 0
        self.kernel = False
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Worker:
        import tempfile

        self._folder = self._stack.enter_context(tempfile.TemporaryDirectory())
        self._stack.callback(self.stop)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def run(self, program: Program) -> Outcome:
        """What a program does, without looking at its source first. Only for what `refusal` has let through,
        and for tests.
        """
        was_used = self.process is not None
        outcome = self._run_once(program)
        # a worker that died since its last program did not die of this one
        if outcome is None and was_used:
            outcome = self._run_once(program)
        return outcome or Outcome(None, "the worker gave no answer")

    def _run_once(self, program: Program) -> Outcome | None:
        if self.process is None:
            self._start()
        self.number += 1
        answer = self._ask({"number": self.number, **program._asdict()})
        try:
            return _understood(answer, self.number, len(program.calls))
        except (KeyError, TypeError, ValueError):
            self.stop()
            return None

    def stop(self) -> None:
        """Kill the worker and whatever it may have started."""
        if self.process is not None:
            with contextlib.suppress(
                ProcessLookupError, PermissionError
            ):  # gone already (on macOS: or about to be)
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.kill()
            for pipe in (self.process.stdin, self.process.stdout):
                assert pipe is not None
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
            self.process.wait()
            self.process = None

    def _start(self) -> None:
        import subprocess

        script = str(Path(__file__).with_name("sandbox_worker.py"))
        command, pipe = [sys.executable, "-I", "-S", script], subprocess.PIPE
        try:
            self.process = subprocess.Popen(
                command,
                bufsize=0,
                stdin=pipe,
                stdout=pipe,
                stderr=subprocess.DEVNULL,
                env={},
                cwd=self._folder,
                start_new_session=True,
            )
            answer = self._ask(asdict(self.limits))
            if answer is not None and answer.get("ready") is True:
                self.kernel = bool(answer.get("kernel"))
                return
            why = "it gave no sign"
        except OSError as error:
            why = str(error)
        self.stop()
        raise BitnetError(
            f"the sandbox for generated programs did not start ({why}); check that {sys.executable!r} runs "
            "Python"
        )

    def _ask(self, question: dict[str, Any]) -> dict[str, Any] | None:
        """One line there, one line back; None where none comes, or something else."""
        assert self.process is not None
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(question).encode() + b"\n")
            answer = json.loads(self._line())
        except (OSError, ValueError, RecursionError):
            return None
        return answer if isinstance(answer, dict) else None

    def _line(self) -> bytes:
        assert self.process is not None
        assert self.process.stdout is not None
        deadline = time.monotonic() + self.limits.wall_seconds + GRACE_SECONDS
        pipe = self.process.stdout.fileno()
        poll = select.poll()
        poll.register(pipe, select.POLLIN)
        text = b""
        while not text.endswith(b"\n"):
            ready = poll.poll(max(deadline - time.monotonic(), 0.0) * 1e3)
            piece = os.read(pipe, 65_536) if ready else b""
            text += piece
            if not piece or len(text) > LONGEST_ANSWER:
                raise ValueError("no answer, or too long a one")
        return text


def _understood(answer: dict[str, Any] | None, number: int, calls: int) -> Outcome:
    """The outcome in an answer. Raises KeyError, TypeError or ValueError for what no honest worker sends."""
    if answer is None or answer["number"] != number:
        raise ValueError("no answer to this question")
    if "problem" in answer:
        return Outcome(None, str(answer["problem"]))
    results = tuple(CallResult(value, tuple(map(str, printed))) for value, printed in answer["results"])
    if len(results) != calls or not all(isinstance(result.value, int | None) for result in results):
        raise ValueError("results that do not fit the calls")
    return Outcome(results)
