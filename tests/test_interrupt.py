"""A second signal ends the process, whatever it is doing; a signal that was answered does not count."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import bitnet.interrupt as interrupt
from conftest import TINY_TRAIN, Command

BUSY = """
import hashlib, sys, threading
from bitnet.cli.main import main

def busy(*words, **options):
    threading.Timer(1, lambda: print("busy", flush=True)).start()  # said once the call below is under way
    hashlib.pbkdf2_hmac("sha256", b"a", b"b", 2**31 - 1)  # one call into C for an hour, as a long product is
    return 0
"""
PLACES = {
    "training": (
        "import bitnet.train.start as start\nstart.train_steps = busy\n",
        [*TINY_TRAIN, "--run-id", "r"],
    ),
    "an evaluation inside training": (
        "import bitnet.train.observe.measurements as measurements\nmeasurements.held_out_loss = busy\n",
        [*TINY_TRAIN, "--run-id", "r", "--num-steps", "3"],
    ),
    "another command": ("import bitnet.cli.runs as runs\nruns.main = busy\n", ["runs"]),
}


def heed_ctrl_c() -> None:
    """Undo what a shell does for commands in the background: they ignore SIGINT, and so would their
    children.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)


def wait_for_delivery(pid: int) -> None:
    """Two equal signals that wait together are one for the system, as a person's two key presses never
    are.
    """
    status = Path(f"/proc/{pid}/status")
    while any(
        line.startswith("ShdPnd") and int(line.split()[1], 16) for line in status.read_text().splitlines()
    ):
        pass


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/status").exists(),
    reason="needs the pending signals of a process, as Linux shows them",
)
@pytest.mark.parametrize(
    ("place", "pair"),
    [
        ("training", (signal.SIGTERM, signal.SIGINT)),
        ("training", (signal.SIGTERM, signal.SIGTERM)),
        ("an evaluation inside training", (signal.SIGINT, signal.SIGINT)),
        ("another command", (signal.SIGINT, signal.SIGINT)),  # SIGTERM ends it at once, by the system
    ],
)
def test_a_second_signal_during_one_long_operation_ends_the_process(
    place: str, pair: tuple[signal.Signals, signal.Signals], bitnet: Command, tmp_path: Path
) -> None:
    patch, words = PLACES[place]
    command = [
        sys.executable,
        "-c",
        f"{BUSY}\n{patch}\nsys.exit(main(sys.argv[1:]))",
        *words,
        "--runs-dir",
        str(tmp_path),
    ]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, preexec_fn=heed_ctrl_c) as process:  # noqa: PLW1509
        assert process.stdout is not None
        assert any(line == "busy\n" for line in process.stdout)
        for one in pair:
            process.send_signal(one)
            wait_for_delivery(process.pid)
        try:
            _, error = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 128 + pair[1]
    assert f"a second signal ({pair[1].name}) ended the process at once" in error
    if place != "another command":
        status = json.loads((tmp_path / "r" / "status.json").read_text())
        assert status["state"] == "stopped"
        assert status["why"].startswith(pair[1].name)
        assert bitnet("status", "r", "--runs-dir", tmp_path, "--json").json["state"] == "stopped"
        assert bitnet(*TINY_TRAIN, "--run-id", "r", "--num-steps", 3, "--runs-dir", tmp_path).code in (
            0,
            2,
        )  # 2: other settings


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int | None]]:
    """A watch that ends the process at once, if it does; the code that it would exit with, after waiting for
    it or not.
    """
    codes: list[int] = []
    done = threading.Event()

    def exit_(code: int) -> None:
        codes.append(code)
        done.set()

    monkeypatch.setattr(interrupt, "GRACE_S", 0.0)
    monkeypatch.setattr(os, "_exit", exit_)
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    yield lambda: codes[0] if done.wait(0.3 if not codes else 0) else None
    signal.signal(signal.SIGTERM, before)


@pytest.mark.slow
def test_two_signals_end_the_process_and_say_so(
    exits: Callable[[], int | None], capfd: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    with interrupt.second_signal_ends(), interrupt.last_words(lambda number: said.append(number.name)):
        signal.raise_signal(signal.SIGTERM)
        assert exits() is None
        signal.raise_signal(signal.SIGTERM)
        while exits() is None:
            pass
    assert exits() == 128 + signal.SIGTERM
    assert said == ["SIGTERM"]
    assert "a second signal (SIGTERM)" in capfd.readouterr().err


def test_a_signal_that_was_answered_does_not_count(exits: Callable[[], int | None]) -> None:
    """`bitnet diagnose` stops a rehearsed run with a signal and goes on."""
    with interrupt.second_signal_ends():
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
            interrupt.answered()
        assert exits() is None


def test_outside_the_main_thread_and_inside_itself_it_does_nothing() -> None:
    def nested() -> None:
        with interrupt.second_signal_ends(), interrupt.last_words(lambda number: None):
            interrupt.answered()

    thread = threading.Thread(target=nested)
    thread.start()
    thread.join()
    with interrupt.second_signal_ends():
        nested()
        assert signal.set_wakeup_fd(-1) != -1
    assert signal.set_wakeup_fd(-1) == -1
