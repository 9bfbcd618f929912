"""Commands with nonsense in their flags end with one clear line and exit code 2, never otherwise.

Every flag of every verb, as its help lists them, takes its turn with a hostile value (nonsense.py): numbers
beyond every range, names of five thousand letters, control characters, folders in place of files, devices and
named pipes. A command is a fork of this process, so that torch is loaded once. It has a memory limit and a
time limit, no input and no network. Not here: hostile files (hostile_files.py), and the small part of these
trials that always runs (tests/hostile/test_fuzz.py).
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shlex
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from reliability.nonsense import BASES, TASK, draw, flags_of
from reliability.trial import Trial

LIMIT_S = 60.0  # of one command, on a shared machine; the slowest honest ones take a few seconds
LIMIT_MEMORY = 6 << 30  # bytes of address space beyond what is loaded
LIMIT_FILE = 64 << 20
CODES = (0, 1, 2, 130)
FRESH_EVERY = 50  # commands that share one working folder


def run(count: int | None, seed: int) -> list[Trial]:
    """Try `count` commands (None: two for each flag), drawn with the seed. The flags take turns."""
    flags = [flag for command in BASES for flag in flags_of(command) if flag.name != "--watch"]
    random.Random(seed).shuffle(flags)
    trials = []
    with tempfile.TemporaryDirectory() as folder:
        template = make_world(Path(folder) / "template")
        for index in range(count or 2 * len(flags)):
            place = Path(folder) / f"world{index // FRESH_EVERY}"
            if not place.exists():
                copy_world(template, place)
            flag, generator = flags[index % len(flags)], random.Random(f"{seed} {index}")
            others = [other for other in flags if other.command == flag.command and other.name != flag.name]
            more = generator.sample(others, min(generator.choice((0, 0, 0, 1, 2)), len(others)))
            words, nonsense = draw([flag, *more], generator)

            trouble = judged(*started(words, place), nonsense=nonsense)
            short = [w if len(w) < 60 else f"{w[:20]}...({len(w)} characters)" for w in words]
            shown = shlex.join(short)
            trials.append(Trial(flag.command.split()[0], ascii(shown)[1:-1], trouble is None, trouble or ""))
    return trials


def judged(code: int | None, out: str, err: str, *, nonsense: bool) -> str | None:
    """What is wrong with the end of a command, or None. code: None if it had to be stopped."""
    lines = [line for line in err.splitlines() if line.strip()]
    last = lines[-1][:300] if lines else ""
    faults = {
        f"still running after {LIMIT_S:g} s": code is None,
        f"traceback: {last}": "Traceback (most recent call last)" in err,
        f"exit code {code}: {last}": code not in CODES,
        f"exit code 2 without a message at the end: {last}": code == 2
        and not last.startswith(("bitnet: ", '{"error"')),
        f"more than one line of error: {err[:300]!r}": sum(line.startswith("bitnet: ") for line in lines) > 1
        or "Warning: " in err,
        "a control character reached the terminal": any(ord(c) < 32 and c not in "\n\t\r" for c in out + err),
        "success on nonsense": nonsense and code != 2,
    }
    return next((fault for fault, there in faults.items() if there), None)


def started(words: Sequence[str], place: Path) -> tuple[int | None, str, str]:
    """Exit code (None if it had to be stopped), standard output and error of a command in that folder."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            _child(words, place, out.fileno(), err.fileno())
        code = _wait(child, time.monotonic() + LIMIT_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # and whatever it started
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read(1 << 20).decode("utf-8", errors="replace"))
    return code, texts[0], texts[1]


def _child(words: Sequence[str], place: Path, out: int, err: int) -> None:
    """Be the command. Never returns."""
    import traceback

    import torch

    from bitnet.cli.main import main

    torch.set_num_threads(1)  # OpenMP's other threads did not survive the fork; their work would never end
    code = 99
    try:
        os.setsid()
        os.chdir(place)
        for number, file in ((0, os.open(os.devnull, os.O_RDONLY)), (1, out), (2, err)):
            os.dup2(file, number)
        sys.stdin, sys.stdout, sys.stderr = (
            open(n, mode, encoding="utf-8", closefd=False)  # noqa: SIM115
            for n, mode in ((0, "r"), (1, "w"), (2, "w"))
        )
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        used = pages * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + LIMIT_MEMORY, used + LIMIT_MEMORY))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT_FILE, LIMIT_FILE))
        code = main(words)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1 if end.code else 0
    except BaseException:  # noqa: BLE001 - whatever comes out is the finding
        traceback.print_exc()
        code = 1
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code % 256)


def _wait(child: int, until: float) -> int | None:
    """The exit code of a process (negative for a signal), or None if it had to be stopped at that time."""
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(0.01)


def make_world(place: Path) -> Path:
    """A folder with two small runs, a tokenizer, stories, written prompts, and things that are not files."""
    from bitnet.text.bpe import train_bpe

    place.mkdir(parents=True)
    generator = random.Random(1)
    words = ("a", "dog", "ran", "to", "the", "moon", "and", "sang", "under", "red", "trees")
    stories = [" ".join(generator.choices(words, k=40)).capitalize() + "." for _ in range(200)]
    (place / "stories.txt").write_text("".join(f"{text}\n<|endoftext|>\n" for text in stories))
    (place / "topics.txt").write_text("the moon\nrivers\ntrains\n")
    train_bpe(stories, 300).save(place / "tokenizer")
    (place / "empty").write_bytes(b"")
    (place / "binary").write_bytes(bytes(range(256)) * 40)
    (place / "folder").mkdir()
    for run_id in ("tiny", "twin"):
        more = f"--num-steps 2 --train.eval-every 1 --run-id {run_id}".split()
        code, _, err = started(["train", "arithmetic", *TASK, *more], place)
        assert code == 0, err
    assert started(["voice", "prompts", *BASES["voice prompts"], "--out", "written"], place)[0] == 0
    return place


def copy_world(template: Path, place: Path) -> None:
    """Copy the folder, and make anew what cannot be copied."""
    shutil.copytree(template, place)
    os.mkfifo(place / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(place / "socket"))
    (place / "loop").symlink_to("loop")
    (place / "closed").mkdir(mode=0)


def failures(trials: Sequence[Trial]) -> Iterator[str]:
    """One line for each trial that failed."""
    return (f"{trial.name}\n    {trial.outcome}" for trial in trials if not trial.held)


if __name__ == "__main__":
    found = run(int(sys.argv[1]), int(sys.argv[2]))
    print("\n".join(failures(found)))
    print(f"{sum(trial.held for trial in found)} of {len(found)} held")
