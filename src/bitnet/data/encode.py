"""Documents to token ids in several processes, results in the order of the documents.

Workers are started anew (spawned), not forked: a fork would copy a process whose threads hold locks. They ignore Ctrl-C,
which is the main process's to handle, and end when it does, even where it was killed. Not here: files (prepare.py).
"""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bitnet.data.documents import DocumentSource, Position, Reading
from bitnet.data.holdout import HoldOut, content_hash
from bitnet.data.readers import EMPTY, Record
from bitnet.errors import DataError
from bitnet.text.tokenizer import Tokenizer, load_tokenizer

BATCH_CHARACTERS = 1 << 20
BATCH_DOCUMENTS = 4096
LOOK_AHEAD = 2  # batches per process that are read ahead of the one that is written


class Batch(NamedTuple):
    """Documents in a row, and what was met on the way to the last of them. position: where to go on after it."""

    texts: list[str]
    empty: int
    broken: int
    first_broken: str | None
    position: Position
    fraction: float | None


@dataclass(frozen=True)
class Encoded:
    """D documents, each ending with the end-of-text id.

    tokens: (sum of lengths,); lengths: int64 (D,), tokens with that id; text_bytes: int64 (D,); roles: uint8 (D,);
    hashes: 16 bytes each.
    """

    tokens: NDArray[np.unsignedinteger]
    lengths: NDArray[np.int64]
    text_bytes: NDArray[np.int64]
    roles: NDArray[np.uint8]
    hashes: list[bytes]


@dataclass(frozen=True)
class Encoder:
    """What a worker does with a batch. dtype: of the tokens."""

    tokenizer: Tokenizer
    hold_out: HoldOut
    dtype: str

    def __call__(self, texts: list[str]) -> Encoded:
        """Ids, lengths, roles and hashes of the documents."""
        end = np.array([self.tokenizer.eos_id], dtype=self.dtype)
        parts = [np.append(self.tokenizer.encode_array(text).astype(self.dtype), end) for text in texts]
        hashes = [content_hash(text) for text in texts]
        return Encoded(
            tokens=np.concatenate(parts) if parts else end[:0],
            lengths=np.array([len(part) for part in parts], dtype=np.int64),
            text_bytes=np.array([len(text.encode()) for text in texts], dtype=np.int64),
            roles=np.array([self.hold_out.role(digest) for digest in hashes], dtype=np.uint8),
            hashes=hashes,
        )


def batches(source: DocumentSource, position: Position | None) -> Iterator[Batch]:
    """The source's documents in batches of about a megabyte; a longer document is a batch of its own."""
    reading = source.open(position)
    waiting: list[Record] = []
    characters = 0
    places: list[str] = []
    for record in reading:
        waiting.append(record)
        characters += len(record.text or "")
        if record.problem not in (None, EMPTY) and not places:
            places.append(f"{reading.place()}: {record.problem}")
        if characters >= BATCH_CHARACTERS or len(waiting) >= BATCH_DOCUMENTS:
            yield _batch(waiting, places, reading)
            waiting, characters, places = [], 0, []
    if waiting:
        yield _batch(waiting, places, reading)


def _batch(records: list[Record], places: list[str], reading: Reading) -> Batch:
    return Batch(
        texts=[record.text for record in records if record.text is not None],
        empty=sum(record.problem == EMPTY for record in records),
        broken=sum(record.problem not in (None, EMPTY) for record in records),
        first_broken=places[0] if places else None,
        position=reading.position(),
        fraction=reading.fraction(),
    )


def encode_in_order(
    work: Iterable[Batch], tokenizer_folder: Path, hold_out: HoldOut, dtype: str, processes: int
) -> Iterator[tuple[Batch, Encoded]]:
    """Each batch with its ids, in order. processes: 1 works in this process."""
    if processes == 1:
        encoder = Encoder(load_tokenizer(tokenizer_folder), hold_out, dtype)
        for batch in work:
            yield batch, encoder(batch.texts)
        return
    context = get_context("spawn")
    pool = ProcessPoolExecutor(processes, context, initializer=_begin, initargs=(tokenizer_folder, hold_out, dtype))
    waiting: deque[tuple[Batch, Future[Encoded]]] = deque()
    try:
        for batch in work:
            waiting.append((batch, pool.submit(_encode, batch.texts)))
            if len(waiting) > LOOK_AHEAD * processes:
                yield _result(waiting.popleft())
        while waiting:
            yield _result(waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _result(pair: tuple[Batch, Future[Encoded]]) -> tuple[Batch, Encoded]:
    try:
        return pair[0], pair[1].result()
    except BrokenProcessPool:
        raise DataError(
            "a worker process ended (perhaps for lack of memory); repeat the command to continue, with fewer --processes"
        ) from None


_encoder: Encoder | None = None  # of a worker process


def _begin(tokenizer_folder: Path, hold_out: HoldOut, dtype: str) -> None:
    global _encoder  # noqa: PLW0603 - a pool gives its workers no other place
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _encoder = Encoder(load_tokenizer(tokenizer_folder), hold_out, dtype)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _encode(texts: list[str]) -> Encoded:
    assert _encoder is not None
    return _encoder(texts)
