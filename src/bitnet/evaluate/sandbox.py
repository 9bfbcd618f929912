"""Running small programs that nobody can vouch for: what a model wrote, judged by what it does.

Three walls, each of which has to hold by itself (tests/evaluate/test_sandbox.py pushes at each one alone):

1.  `subset.refusal` reads the syntax tree and lets through one function of integers: assignments, if, for, while, return,
    arithmetic, comparisons, and calls of print and range. No attributes, no imports, no strings, no other calls.
2.  A `Worker` is another interpreter (`-I -S`, empty environment, empty folder) that runs this very file. It gives a
    program no builtins but print and range, and limits CPU time, memory, files and processes. An audit hook ends it at
    the first thing that reaches outside: an import, an open, a fork, a compile.
3.  The worker only ever answers what a program returned and printed. What is right never leaves this process, so
    there is no verdict to forge; an answer that is late, too long or garbled is the end of that worker and of that case alone.

This is not a sandbox for programs at large: wall 1 refuses nearly all of Python. Whoever widens it leans on wall 2,
which is as strong as the interpreter and the limits that the system has (macOS has no limit on memory).
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
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import subprocess

LONGEST_ANSWER = 1_000_000  # bytes that are read from a worker for one program


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
        was_used = self.process is not None
        outcome = self._run_once(program)
        if outcome is None and was_used:  # one before it may have spoiled the worker
            outcome = self._run_once(program)
        return outcome or Outcome(None, "it brought the worker down")

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
            if not piece or len(text) > LONGEST_ANSWER:
                raise ValueError("no answer, or too long a one")
        return text


def _understood(answer: dict[str, Any] | None, number: int, calls: int) -> Outcome:
    """The outcome in an answer. Raises KeyError, TypeError or ValueError for what no honest worker sends."""
    if answer is None or answer["number"] != number:
        raise ValueError("no answer to this question")
    if "problem" in answer:
        return Outcome(None, str(answer["problem"]))
    results = tuple(Result(value, tuple(map(str, printed))) for value, printed in answer["results"])
    if len(results) != calls or not all(isinstance(result.value, int | None) for result in results):
        raise ValueError("results that do not fit the calls")
    return Outcome(results)


# ---- wall 2, the other side: what runs in the worker


class _Watch:
    """The audit hook, which lets this file alone do a little, and the alarm, which only rings while a program runs."""

    def __init__(self) -> None:
        self.preparing = False
        self.running = False

    def audit(self, event: str, _: tuple[object, ...]) -> None:
        if not self.preparing and event != "exec":  # the event of the program's own start
            os._exit(1)

    def alarm(self, *_: object) -> None:
        if self.running:
            raise TimeoutError("it takes too long")


def _limit_resources(limits: Limits) -> None:
    import resource

    mib = 2**20
    wanted = {"AS": limits.memory_mib * mib, "DATA": limits.memory_mib * mib, "FSIZE": 0, "NOFILE": 0, "NPROC": 0, "CORE": 0}
    for name, value in wanted.items():
        with contextlib.suppress(AttributeError, ValueError, OSError):  # a system that lacks one keeps the others
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))


def _arm(limits: Limits) -> None:
    """Have the alarm ring when the program's CPU time is over, and the system kill it where one long operation hears no alarm."""
    import resource

    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (int(used + limits.cpu_seconds) + 1, hard))
    signal.setitimer(signal.ITIMER_PROF, limits.cpu_seconds)


def _printer(lines: list[str], limit: int) -> Callable[..., None]:
    def collect(*values: object) -> None:
        if len(lines) >= limit:
            raise ValueError("it prints too much")
        if not all(type(value) in (int, bool) for value in values):
            raise TypeError("it prints something that is not a number")
        lines.append(" ".join(map(str, values)))

    return collect


def _execute(question: dict[str, Any], limits: Limits, watch: _Watch) -> dict[str, Any]:
    """The answer to one program."""
    watch.preparing = True
    code = compile(question["source"], "program", "exec", dont_inherit=True)
    lines: list[str] = []
    space: dict[str, Any] = {"__builtins__": {"print": _printer(lines, limits.printed_lines), "range": range}}
    results = []
    _arm(limits)
    watch.preparing, watch.running = False, True
    exec(code, space)
    for arguments in question["calls"]:
        lines.clear()
        value = space[question["name"]](*arguments)
        if type(value) not in (int, bool, type(None)):
            raise TypeError("it returns something that is not a number")
        results.append((value, tuple(lines)))
    return {"results": results}


def _serve(questions: IO[bytes], answers: IO[bytes]) -> None:
    """Answer limits with ready, then programs with results, one line each, until there are no more."""
    limits = Limits(**json.loads(questions.readline()))
    watch = _Watch()
    signal.signal(signal.SIGPROF, watch.alarm)
    _limit_resources(limits)
    sys.setrecursionlimit(500)
    sys.addaudithook(watch.audit)
    answers.write(b'{"ready": true}\n')
    answers.flush()
    for line in questions:
        question = json.loads(line)
        try:
            text = json.dumps({"number": question["number"], **_execute(question, limits, watch)})
        except BaseException as error:  # noqa: BLE001  whatever a program raises is its answer
            watch.preparing = watch.running = False
            text = json.dumps({"number": question["number"], "problem": f"{type(error).__name__}: {error!s:.80}"})
        watch.running = False
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        answers.write(text.encode() + b"\n")
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
