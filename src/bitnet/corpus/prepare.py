"""Documents to token shards in a folder: made, finished, or found there.

One process at a time works on a folder, and a folder with other content is refused. Functions here print
nothing; they call back. Not here: the pass over the documents (preparation.py), the shards' format and how
they are read (data/shards.py).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from bitnet.bounds import within
from bitnet.corpus.corpus import Corpus
from bitnet.corpus.documents import DocumentSource
from bitnet.corpus.preparation import (
    COMMIT_BYTES,
    PROGRESS,
    SHARD_TOKENS,
    Preparation,
    Report,
    check_settings,
)
from bitnet.data.shards import MANIFEST, Shards
from bitnet.errors import DataError
from bitnet.files import exclusive, sweep
from bitnet.text.tokenizer import Tokenizer

LOCK = ".lock"
MOST_PROCESSES = 1024
SMALL_BYTES = 4 << 20  # less than this is encoded sooner than a second process starts


def prepare_cached(
    corpus: Corpus,
    tokenizer: Tokenizer,
    cache: Path,
    *,
    processes: int | None = None,
    report: Report | None = None,
) -> Shards:
    """The shards of a corpus from a cache folder, made if they are not there."""
    words = re.sub(r"[^A-Za-z0-9]+", "-", corpus.source.name).strip("-")[:40]
    folder = cache / f"{words}-{corpus.key(tokenizer)}"
    return prepare(corpus, tokenizer, folder, processes=processes, report=report)


def prepare(
    corpus: Corpus,
    tokenizer: Tokenizer,
    out: Path,
    *,
    processes: int | None = None,
    report: Report | None = None,
    shard_tokens: int = SHARD_TOKENS,
    commit_bytes: int = COMMIT_BYTES,
) -> Shards:
    """Make, finish or find the shards in `out`. processes: all processors where None.

    Raises DataError where the folder holds something else or a shard that was altered, no document is left,
    or more than 5% of them are broken.
    """
    within("--processes", processes, 1, MOST_PROCESSES)
    settings = corpus.settings(tokenizer)
    try:
        with _one_process(out):
            if not (out / MANIFEST).exists():
                work = Preparation(corpus, tokenizer, out, settings, report, commit_bytes)
                return work.run(shard_tokens, processes or _processes(corpus.source))
            finished = Shards.open(out, tokenizer)
            check_settings(out, finished.manifest["settings"], settings, "holds other data")
            (out / PROGRESS).unlink(missing_ok=True)  # a process that was killed in its last moment left it

        finished.verify(tokenizer.vocab_size)  # without the lock: others may use what is finished meanwhile
        return finished
    except OSError as error:
        raise DataError(
            f"writing to {out} failed ({error.strerror}); free some space and repeat the command to continue"
        ) from error


def _processes(source: DocumentSource) -> int:
    size = source.size_bytes
    return 1 if size is not None and size < SMALL_BYTES else os.cpu_count() or 1


@contextmanager
def _one_process(out: Path) -> Iterator[None]:
    """Hold the folder's lock; a lock left by a dead process never blocks. Raises DataError for a folder with
    other content.
    """
    _check_folder(out)
    busy = DataError(f"another process is preparing {out}; wait for it, or name another folder")
    made = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    with exclusive(out / LOCK, busy) as file:
        if not _has_its_name(file, out / LOCK):
            raise busy
        sweep(out)
        try:
            yield
        finally:
            with suppress(OSError):  # what was refused is what the user should read
                if [path.name for path in out.iterdir()] == [LOCK]:  # nothing was written
                    (out / LOCK).unlink()
                    if made:
                        out.rmdir()


def _check_folder(out: Path) -> None:
    """Raise DataError unless the folder is new, empty, or one of ours."""
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file; name a folder with --out")
    ours = any((out / name).exists() for name in (MANIFEST, PROGRESS, LOCK))
    if out.is_dir() and any(out.iterdir()) and not ours:
        raise DataError(f"{out} holds other files; name a new or empty folder with --out")


def _has_its_name(file: IO[Any], path: Path) -> bool:
    """Whether an open file still has its name: another process may have removed it when it was done."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
