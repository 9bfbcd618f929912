"""Commands with nonsense in their flags: one clear line and exit code 2, never a traceback, a hang or a
success on nonsense.

Every flag of every verb, as its help lists them, takes its turn with a hostile value: numbers beyond every
range, names of five thousand letters, control characters, folders where files belong, devices and named
pipes. A command is a fork of this process, so that torch is loaded once; it has a memory limit and a time
limit, no input and no network. Not here: hostile files (hostile_files.py); the small part of these trials
that always runs (tests/hostile/test_fuzz.py).
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import re
import resource
import shlex
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from reliability.trial import Trial

LIMIT_S = 60.0  # of one command, on a shared machine; the slowest honest ones take a few seconds
LIMIT_MEMORY = 6 << 30  # bytes of address space beyond what is loaded
LIMIT_FILE = 64 << 20
CODES = (0, 1, 2, 130)
FRESH_EVERY = 50  # commands that share one working folder
TINY = """
    --device cpu --model.hidden-size 32 --model.num-layers 1 --model.num-heads 2 --model.num-kv-heads 1
    --model.ffn-hidden-size 64 --batch-size 4 --train.eval-cases 4 --train.compile off
""".split()
TEXT = [
    *TINY,
    "--variant",
    "quick",
    "--data",
    "stories.txt",
    "--num-steps",
    "1",
    "--model.vocab-size",
    "300",
    "--seq-len",
    "32",
    "--cache-dir",
    "cache",
    "--data.judged-prompts",
    "4",
]
TASK = [*TINY, "--variant", "quick", "--num-steps", "1", "--data.max-operand", "9"]
BASES: dict[str, list[str]] = {
    "experiments": [],
    "train arithmetic": TASK,
    "train tinystories": [*TEXT, "--dry-run"],
    "train json_records": [*TINY, "--variant", "quick", "--dry-run"],
    "train bitnut_sft": ["--variant", "quick", "--dry-run"],
    "evaluate tiny": ["--show", "1"],
    "complete tiny": ["1 + 1 = ", "--max-new-tokens", "4"],
    "chat tiny": ["-p", "1 + 1 = ", "--max-new-tokens", "4"],
    "play tiny": [],
    "runs": [],
    "status tiny": [],
    "plot tiny": [],
    "diagnose nothing": [],
    "compare tiny twin": [],
    "report tiny": [],
    "tokenizer train": ["--data", "stories.txt", "--vocab-size", "300", "--out", "new-tokenizer"],
    "tokenizer inspect": ["tokenizer", "--text", "a dog"],
    "prepare arithmetic": ["--out", "lines.txt", "--count", "10"],
    "prepare": ["--data", "stories.txt", "--tokenizer", "tokenizer", "--out", "shards", "--processes", "1"],
    "voice prompts": [
        "--teacher",
        "rules",
        "--topics",
        "topics.txt",
        "--batches",
        "1",
        "--per-batch",
        "3",
        "--out",
        "prompts",
    ],
    "voice answers": ["--teacher", "rules", "--prompts", "written", "--out", "answers"],
    "cost arithmetic": [],
    "cost 1B": [],
}
"""What each command needs beside the flag under trial to do its work in a moment, and to succeed where that
flag is harmless."""
NONSENSE = [
    "-1",
    "-9223372036854775808",
    "9223372036854775807",
    "1" + "0" * 400,
    "nan",
    "inf",
    "-inf",
    "3.5e38",
    "1e308",
    "-0.5",
]
SENSE = {("--seed", NONSENSE[2]), ("--train.seed", NONSENSE[2])}  # the largest seed that there is
NUMBERS = [
    *NONSENSE,
    "0",
    "1",
    "2147483648",
    "1e-45",
    "1_0",
    "0x10",
    "",
    " ",
    "٣",
    "two",
    "1" + "0" * 5000,
    "1/2",
    "None",
    "--",
]
WORDS = [
    "",
    " ",
    "\n",
    "a" * 256,
    "é" * 200,
    "a" * 100_000,
    "\x1b[2J\x1b[H",
    "\u202eevil",
    "漢字.txt",
    "\udcff",
    "%s%n%p",
    "$(id)",
    "{0.__class__}",
    "-",
    "--",
    "..",
    ".",
    "/",
    "~",
    "a/b",
    "../../../../etc/passwd",
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "pipe",
    "socket",
    "loop",
    "missing",
    "missing/deep.png",
    "folder",
    "folder/deep.txt",
    "empty",
    "binary",
    "stories.txt",
    "closed",
    "latest",
    "arithmetic",
    "tiny",
    "[",
    "**",
    "http://127.0.0.1:9/v1",
    "meta-llama/Llama-2-7b-hf",
    "nothing.py",
    "x.png",
    "x.html",
    "tiny/../tiny",
    "step_000000",
]


@dataclass(frozen=True)
class Flag:
    """One flag of one command. kind: what help says it takes; nothing for a switch."""

    command: str
    name: str
    kind: str

    @property
    def number(self) -> bool:
        """Whether it takes a number."""
        return "INT" in self.kind or "FLOAT" in self.kind


def flags_of(command: str) -> list[Flag]:
    """Every flag that the command's help lists."""
    from bitnet.cli.main import main

    out = io.StringIO()
    os.environ["COLUMNS"] = "400"  # each flag with its kind on one line
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main([*command.split(), "--help"])
    del os.environ["COLUMNS"]
    found = re.findall(
        r"│ (?:-\w, )?(--[a-z][\w.-]*)(?: ((?:\[|\{|[A-Z]).*?))?(?:  |\s*│)", out.getvalue(), re.MULTILINE
    )
    return [Flag(command, name, kind.strip()) for name, kind in dict(found).items()]


def draw(flags: Sequence[Flag], generator: random.Random) -> tuple[list[str], bool]:
    """The words of one command with these flags in turn, and whether only a refusal is right."""
    first = flags[0].command.split()
    if generator.random() < 0.1 and len(first) > 1:
        first[-1] = generator.choice(WORDS)
    pairs = [given(flag, generator) for flag in flags]
    return [*first, *BASES[flags[0].command], *(word for words, _ in pairs for word in words)], (
        any(nonsense for _, nonsense in pairs) and "--help" not in (flag.name for flag in flags)
    )


def given(flag: Flag, generator: random.Random) -> tuple[list[str], bool]:
    """A flag with a hostile value, and whether the value is no number that anybody could mean."""
    value = generator.choice(NUMBERS if flag.number else WORDS)
    if not flag.kind and generator.random() < 0.8:
        return [flag.name], False
    nonsense = flag.number and value in NONSENSE and (flag.name, value) not in SENSE
    return [f"{flag.name}={value}"] if generator.random() < 0.3 else [flag.name, value], nonsense


def run(count: int | None, seed: int) -> list[Trial]:
    """`count` commands (None: two for each flag), drawn with the seed; every flag has its turn before any has
    another.
    """
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
            words, nonsense = draw(
                [flag, *generator.sample(others, min(generator.choice((0, 0, 0, 1, 2)), len(others)))],
                generator,
            )
            trouble = judged(*started(words, place), nonsense=nonsense)
            shown = shlex.join(
                word if len(word) < 60 else f"{word[:20]}...({len(word)} characters)" for word in words
            )
            trials.append(Trial(flag.command.split()[0], ascii(shown)[1:-1], trouble is None, trouble or ""))
    return trials


def judged(code: int | None, out: str, err: str, *, nonsense: bool) -> str | None:
    """What is wrong with how a command ended, or None. code: None where it had to be stopped."""
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
    """Exit code, standard output and standard error of a command in that folder; no code where it had to be
    stopped.
    """
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
    """Be the command. Never returns. One thread: OpenMP's others did not survive the fork, and work given to
    them never ends.
    """
    import traceback

    import torch

    from bitnet.cli.main import main

    torch.set_num_threads(1)

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
        used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * os.sysconf(
            "SC_PAGE_SIZE"
        )
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
    """The exit code of a process (negative for a signal), or None after that time, when it is stopped."""
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
    """A folder with two small runs, a tokenizer, stories, written prompts, and every kind of thing that is no
    file.
    """
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
        wanted = [
            "train",
            "arithmetic",
            *TASK,
            "--num-steps",
            "2",
            "--train.eval-every",
            "1",
            "--run-id",
            run_id,
        ]
        assert started(wanted, place)[0] == 0, started(wanted, place)[2]
    assert started(["voice", "prompts", *BASES["voice prompts"], "--out", "written"], place)[0] == 0
    return place


def copy_world(template: Path, place: Path) -> None:
    """A working folder of its own, with what cannot be copied made anew."""
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
