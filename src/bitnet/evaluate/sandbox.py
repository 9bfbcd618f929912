"""Running small programs that nobody can vouch for: what a model wrote, judged by what it does.

Three walls, each of which has to hold by itself (tests/evaluate/test_sandbox.py pushes at each one alone):

1.  `subset.refusal` reads the syntax tree and lets through one function of integers: assignments, if, for, while, return,
    arithmetic, comparisons, and calls of print and range. No attributes, no imports, no strings, no other calls.
2.  A `Worker` is another interpreter (`-I -S`, empty environment, empty folder) that runs this very file and forks a
    process for each program. That process has no builtins but print and range, limits of CPU time, memory, files and
    processes, and an audit hook that refuses whatever the interpreter audits: opening, importing, compiling, forking,
    running, signalling, connecting. The hook is a function of C that raises for every event. Nothing switches it off:
    a program that finds its way to all modules of the process still cannot open a file.
3.  A program's process can write to a pipe of its own and to nothing else. What is right never leaves the judge's
    process, so there is no verdict to forge; an answer that is late, too long or garbled is the end of that case alone.

This is not a sandbox for programs at large: wall 1 refuses nearly all of Python. Whoever widens it leans on wall 2,
which is as strong as the interpreter's audit events (a few calls, such as making a FIFO, have none) and the limits that the
system has (macOS has no limit on memory).
At its top this file imports only the standard library, because the worker has nothing else.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from types import FunctionType, TracebackType
from typing import IO, TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import subprocess

LONGEST_ANSWER = 1_000_000  # bytes that are read from the process of one program


class Program(NamedTuple):
    """Source that defines a function, its name, and the arguments of the calls to make."""

    source: str
    name: str
    calls: Sequence[tuple[int, ...]]


class Result(NamedTuple):
    """What one call returned, and the lines it printed."""

    value: int | bool | None
    printed: tuple[str, ...]

    def same_as(self, other: Result) -> bool:
        """Equal, and True is not 1."""
        return self == other and type(self.value) is type(other.value)


class Outcome(NamedTuple):
    """results: one per call, or None with the reason why there are none."""

    results: tuple[Result, ...] | None
    problem: str | None = None


@dataclass(frozen=True)
class Limits:
    """Per program: CPU seconds, printed lines, and the wall time after which its worker is taken for dead. Per worker: memory."""

    cpu_seconds: float = 0.5
    wall_seconds: float = 20.0
    printed_lines: int = 1_000
    memory_mib: int = 256


def run_programs(programs: Sequence[Program], limits: Limits = Limits()) -> list[Outcome]:
    """Outcomes in the order of the programs. Refused ones are never run."""
    from bitnet.evaluate.subset import refusal

    outcomes = []
    with Worker(limits) as worker:
        for program in programs:
            problem = refusal(program.source, program.name)
            outcomes.append(worker.run(program) if problem is None else Outcome(None, problem))
    return outcomes


# ---- walls 2 and 3, this side: start a worker, ask, and believe nothing that comes late or garbled


class Worker:
    """A limited interpreter, started at the first program and again after each that brought it down."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.process: subprocess.Popen[bytes] | None = None
        self.number = 0
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Worker:
        import tempfile

        self._folder = self._stack.enter_context(tempfile.TemporaryDirectory())
        self._stack.callback(self.stop)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def run(self, program: Program) -> Outcome:
        """What a program does, without looking at its source first. Only for what `refusal` has let through, and for tests."""
        for _ in range(2):  # a worker that stood still or died is replaced once: this program may not be to blame
            if self.process is None:
                self._start()
            self.number += 1
            answer = self._ask({"number": self.number, **program._asdict()})
            try:
                return _understood(answer, self.number, len(program.calls)) or Outcome(None, "it brought its process down")
            except (KeyError, TypeError, ValueError):
                self.stop()
        return Outcome(None, "it brought the worker down")

    def stop(self) -> None:
        """Kill the worker and whatever it may have started."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # gone already (on macOS: or about to be)
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

        from bitnet.errors import BitnetError

        command, pipe = [sys.executable, "-I", "-S", __file__], subprocess.PIPE
        try:
            self.process = subprocess.Popen(
                command, bufsize=0, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, env={}, cwd=self._folder, start_new_session=True
            )
            if self._ask(asdict(self.limits)) == {"ready": True}:
                return
            why = "it gave no sign"
        except OSError as error:
            why = str(error)
        self.stop()
        raise BitnetError(f"the sandbox for generated programs did not start ({why}); check that {sys.executable!r} runs Python")

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
        deadline = time.monotonic() + self.limits.wall_seconds
        pipe = self.process.stdout.fileno()
        poll = select.poll()
        poll.register(pipe, select.POLLIN)
        text = b""
        while not text.endswith(b"\n"):
            ready = poll.poll(max(deadline - time.monotonic(), 0.0) * 1e3)
            piece = os.read(pipe, 65_536) if ready else b""
            text += piece
            if not piece or len(text) > 8 * LONGEST_ANSWER:  # the answer once more as a JSON string
                raise ValueError("no answer, or too long a one")
        return text


def _understood(answer: dict[str, Any] | None, number: int, calls: int) -> Outcome | None:
    """The outcome in an answer; None for a process that left none, or a garbled one. Raises for what no honest worker sends."""
    if answer is None or answer["number"] != number:
        raise ValueError("no answer to this question")
    try:
        found = json.loads(answer["answer"])
        if "problem" in found:
            return Outcome(None, str(found["problem"]))
        results = tuple(Result(value, tuple(map(str, printed))) for value, printed in found["results"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return Outcome(results) if len(results) == calls and all(isinstance(r.value, int | None) for r in results) else None


# ---- wall 2, the other side: what runs in the worker, and in the process that it forks for each program

OWN_PIPE = 3
"""Where a program's process writes its answer: the only descriptor that it has beside 0, 1 and 2, which lead nowhere."""


def _limit_resources(limits: Limits) -> None:
    import resource

    memory = limits.memory_mib * 2**20
    seconds = int(limits.cpu_seconds) + 1  # where one long operation hears no alarm, the system kills the process
    wanted = {"AS": memory, "DATA": memory, "CPU": seconds, "FSIZE": 0, "NOFILE": 0, "NPROC": 0, "CORE": 0}
    for name, value in wanted.items():
        with contextlib.suppress(AttributeError, ValueError, OSError):  # a system that lacks one keeps the others
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))


def _ring(*_: object) -> None:
    raise TimeoutError("it takes too long")


def _printer(lines: list[str], limit: int) -> Callable[..., None]:
    def collect(*values: object) -> None:
        if len(lines) >= limit:
            raise ValueError("it prints too much")
        if not all(type(value) in (int, bool) for value in values):
            raise TypeError("it prints something that is not a number")
        lines.append(" ".join(map(str, values)))

    return collect


def _results(question: dict[str, Any], limits: Limits) -> list[tuple[Any, tuple[str, ...]]]:
    """What the calls returned and printed. Everything that the audit hook would refuse is done before it is there."""
    lines: list[str] = []
    space: dict[str, Any] = {"__builtins__": {"print": _printer(lines, limits.printed_lines), "range": range}}
    start = FunctionType(compile(question["source"], "program", "exec", dont_inherit=True), space)
    _limit_resources(limits)
    signal.signal(signal.SIGPROF, _ring)
    signal.setitimer(signal.ITIMER_PROF, limits.cpu_seconds)
    # Called with an event, it raises TypeError, which refuses the event. A function of C has nothing that could be changed.
    sys.addaudithook(os._exit)  # type: ignore[arg-type]

    start()
    results = []
    for arguments in question["calls"]:
        lines.clear()
        value = space[question["name"]](*arguments)
        if type(value) not in (int, bool, type(None)):
            raise TypeError("it returns something that is not a number")
        results.append((value, tuple(lines)))
    return results


def _answer(question: dict[str, Any], limits: Limits) -> bytes:
    """The answer to one program, in its own process."""
    try:
        answer: dict[str, Any] = {"results": _results(question, limits)}
    except BaseException as error:  # noqa: BLE001  whatever a program raises is its answer
        answer = {"problem": f"{type(error).__name__}: {error!s:.80}"}
    signal.setitimer(signal.ITIMER_PROF, 0.0)
    try:
        return json.dumps(answer).encode()
    except ValueError as error:  # an integer of too many digits
        return json.dumps({"problem": f"ValueError: {error!s:.80}"}).encode()


def _in_a_process(question: dict[str, Any], limits: Limits) -> bytes:
    """The bytes that a program's process wrote, which is killed when it is late, and in any case at the end."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            os.dup2(writing, OWN_PIPE)
            os.closerange(OWN_PIPE + 1, 256)
            os.write(OWN_PIPE, _answer(question, limits))
        finally:
            os._exit(0)
    os.close(writing)
    try:
        return _read_all(reading, time.monotonic() + limits.wall_seconds / 2)
    finally:
        os.close(reading)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)


def _read_all(pipe: int, deadline: float) -> bytes:
    """Everything that is written to a pipe until it is closed, or until the deadline; at most LONGEST_ANSWER bytes."""
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    text = b""
    while len(text) <= LONGEST_ANSWER and poll.poll(max(deadline - time.monotonic(), 0.0) * 1e3):
        piece = os.read(pipe, 65_536)
        if not piece:
            return text
        text += piece
    return b""


def _serve(questions: IO[bytes], answers: IO[bytes]) -> None:
    """Answer limits with ready, then programs with what their processes wrote, one line each, until there are no more."""
    limits = Limits(**json.loads(questions.readline()))
    answers.write(b'{"ready": true}\n')
    answers.flush()
    for line in questions:
        question = json.loads(line)
        written = _in_a_process(question, limits).decode(errors="replace")
        answers.write(json.dumps({"number": question["number"], "answer": written}).encode() + b"\n")
        answers.flush()


def _main() -> None:
    """Move the pipes to where a stray write to 0, 1 or 2 does not reach them, then serve."""
    questions, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nowhere, number)
    _serve(questions, answers)


if __name__ == "__main__":
    _main()
