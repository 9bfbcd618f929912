"""What Ctrl-C and SIGTERM do: the first may wait, the second ends the process within seconds.

In training the first one is noted, and a checkpoint is written after the update (train/start.py); elsewhere
it is Python's KeyboardInterrupt.

Python calls the handler of a signal between two of its own instructions. During a long matrix product, or
while a compiler runs, the second signal waits as long as the first. The system's side of the handler,
however, writes the number of each signal to a socket at once (signal.set_wakeup_fd). A thread reads that
socket: after a second signal, what is going on has GRACE_S to end by itself; then the process exits with 128
+ the signal. That is no more than SIGKILL can do at any moment: files that matter are written aside and
renamed.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

GRACE_S = 3.0  # five seconds are promised; the last words have one of them
LAST_WORDS_S = 1.0
STOPPERS = (signal.SIGINT, signal.SIGTERM)

LastWords = Callable[[signal.Signals], None]


class SignalWatch:
    """Counts the stop signals of this process, and ends it some seconds after the second."""

    def __init__(self) -> None:
        self.reader, self.writer = socket.socketpair()
        self.reader.setblocking(False)
        self.writer.setblocking(False)
        self.last_words: list[LastWords] = []
        self._lock = threading.Lock()
        self._received: list[int] = []
        self._deadline: float | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="second-signal", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def close(self) -> None:
        """Stop watching."""
        self._closed = True
        with suppress(BlockingIOError):
            self.writer.send(b"\0")
        self._thread.join()
        self.reader.close()
        self.writer.close()

    def forget(self) -> None:
        """Count the next signal as a first one again."""
        with self._lock:
            self._read()
            self._received, self._deadline = [], None

    def _run(self) -> None:
        while not self._closed:
            deadline = self._deadline
            wait = None if deadline is None else max(0.0, deadline - time.monotonic())
            select.select([self.reader], [], [], wait)
            with self._lock:
                self._read()
                if len(self._received) > 1 and self._deadline is None:
                    self._deadline = time.monotonic() + GRACE_S
                over = self._deadline is not None and time.monotonic() >= self._deadline
            if over:
                self._end(signal.Signals(self._received[-1]))
                return

    def _read(self) -> None:
        """Take in what the system wrote since the last time. The caller holds the lock."""
        with suppress(BlockingIOError):
            while True:
                self._received += [number for number in self.reader.recv(256) if number in STOPPERS]

    def _end(self, number: signal.Signals) -> None:
        """Say so and exit; worker processes end with their parent."""
        # In a thread, for a limited time: writing to a dead server, for example, may hang.
        speaking = threading.Thread(target=self._speak, args=(number,), daemon=True)
        speaking.start()
        speaking.join(LAST_WORDS_S)
        os._exit(128 + number)

    def _speak(self, number: signal.Signals) -> None:
        os.write(2, f"\nbitnet: a second signal ({number.name}) ended the process at once\n".encode())
        for speak in self.last_words:
            with suppress(OSError):
                speak(number)


_watch: SignalWatch | None = None


@contextmanager
def second_signal_ends() -> Iterator[None]:
    """Inside, a second stop signal ends the process within seconds. Only in the main thread; may nest."""
    global _watch  # noqa: PLW0603 - a process has one set of signal handlers
    if _watch is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    watch = _watch = SignalWatch()
    before = signal.set_wakeup_fd(watch.writer.fileno(), warn_on_full_buffer=False)
    watch.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        watch.close()
        _watch = None


@contextmanager
def last_words(speak: LastWords) -> Iterator[None]:
    """Inside, `speak` is called with the signal before the process ends; it may raise OSError."""
    watch = _watch
    if watch is None:
        yield
        return
    watch.last_words.append(speak)
    try:
        yield
    finally:
        watch.last_words.remove(speak)


@contextmanager
def noting_stop_signals(received: list[int]) -> Iterator[None]:
    """Inside, the first SIGINT or SIGTERM is appended to `received`; a second one raises.

    The second raises KeyboardInterrupt for SIGINT and SystemExit(128 + the signal) for SIGTERM. Does nothing
    outside the main thread, which alone may set handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    before = {one: signal.signal(one, note) for one in STOPPERS}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
        answered()


def answered() -> None:
    """Count the next signal as a first one again: those so far were acted on, and the process goes on."""
    if _watch is not None:
        _watch.forget()
