"""Documents to token ids in several processes, results in the order of the documents.

Workers are started anew (spawned), not forked: a fork would copy a process whose threads hold locks. They
ignore Ctrl-C, which is the main process's to handle, and end when it does, even where it was killed.
Documents wait for them packed into one block of bytes: blocks of one size leave no holes in the heap, as
thousands of texts would, so that memory does not grow with the corpus. Not here: files (prepare.py).
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

from bitnet.corpus.documents import DocumentSource, Position, Reading, Skipped
from bitnet.corpus.holdout import HoldOut, Role, content_hash
from bitnet.corpus.readers import Record
from bitnet.errors import DataError
from bitnet.text.tokenizer import Tokenizer, load_tokenizer

BATCH_BYTES = 1 << 18
BATCH_DOCUMENTS = 4096
LOOK_AHEAD = 2  # batches per process that are read ahead of the one that is written


class Texts(NamedTuple):
    """D documents packed. content: their UTF-8, one after the other; sizes: int64 (D,), bytes of each."""

    content: bytes
    sizes: NDArray[np.int64]

    def each(self) -> Iterator[str]:
        """The documents."""
        end = 0
        for size in self.sizes.tolist():
            start, end = end, end + size
            yield self.content[start:end].decode()


class DocumentBatch(NamedTuple):
    """Consecutive documents, and what was left out between them. position: where to continue after it."""

    texts: Texts
    skipped: Skipped
    position: Position
    fraction: float | None


@dataclass(frozen=True)
class EncodedDocuments:
    """D documents, each ending with the end-of-text id.

    tokens: (sum of lengths,); lengths: int64 (D,), tokens with that id; roles: uint8 (D,).
    """

    tokens: NDArray[np.unsignedinteger]
    lengths: NDArray[np.int64]
    roles: NDArray[np.uint8]


@dataclass(frozen=True)
class Encoder:
    """What a worker does with a batch. dtype: of the tokens."""

    tokenizer: Tokenizer
    hold_out: HoldOut
    dtype: str

    def __call__(self, texts: Texts) -> EncodedDocuments:
        """Ids, lengths and roles of the documents."""
        end = np.array([self.tokenizer.eos_id], dtype=self.dtype)
        parts: list[NDArray[np.unsignedinteger]] = []
        roles: list[Role] = []
        for text in texts.each():
            parts.append(np.append(self.tokenizer.encode_array(text).astype(self.dtype), end))
            roles.append(self.hold_out.role(content_hash(text)))
        return EncodedDocuments(
            tokens=np.concatenate(parts) if parts else end[:0],
            lengths=np.array([len(part) for part in parts], dtype=np.int64),
            roles=np.array(roles, dtype=np.uint8),
        )


def batches(source: DocumentSource, position: Position | None) -> Iterator[DocumentBatch]:
    """The source's documents in batches of about BATCH_BYTES; a longer document is a batch of its own."""
    reading = source.open(position)
    filling = Filling()
    for record in reading:
        filling.add(record, reading)
        if filling.full:
            yield filling.batch(reading)
            filling = Filling()
    if filling.records:
        yield filling.batch(reading)


class Filling:
    """A batch while records are added to it."""

    def __init__(self) -> None:
        self.records, self.skipped = 0, Skipped()
        self.content = bytearray()
        self.sizes: list[int] = []

    def add(self, record: Record, reading: Reading) -> None:
        """Pack a document, or count what is wrong with it."""
        self.records += 1
        if record.text is not None:
            content = record.text.encode()
            self.content += content
            self.sizes.append(len(content))
        else:
            self.skipped.add(record, reading)

    @property
    def full(self) -> bool:
        """Whether it should be encoded now."""
        return len(self.content) >= BATCH_BYTES or self.records >= BATCH_DOCUMENTS

    def batch(self, reading: Reading) -> DocumentBatch:
        """The batch, at the place that the reading has come to."""
        texts = Texts(bytes(self.content), np.array(self.sizes, dtype=np.int64))
        return DocumentBatch(texts, self.skipped, reading.position(), reading.fraction())


def encode_in_order(
    work: Iterable[DocumentBatch], tokenizer_folder: Path, hold_out: HoldOut, dtype: str, processes: int
) -> Iterator[tuple[DocumentBatch, EncodedDocuments]]:
    """Each batch with its ids, in order. processes: 1 works in this process."""
    if processes == 1:
        encoder = Encoder(load_tokenizer(tokenizer_folder), hold_out, dtype)
        for batch in work:
            yield batch, encoder(batch.texts)
        return
    context = get_context("spawn")
    pool = ProcessPoolExecutor(
        processes, context, initializer=_begin, initargs=(tokenizer_folder, hold_out, dtype)
    )

    waiting: deque[tuple[DocumentBatch, Future[EncodedDocuments]]] = deque()
    try:
        for batch in work:
            waiting.append((batch, pool.submit(_encode, batch.texts)))
            if len(waiting) > LOOK_AHEAD * processes:
                yield _result(waiting.popleft())
        while waiting:
            yield _result(waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _result(pair: tuple[DocumentBatch, Future[EncodedDocuments]]) -> tuple[DocumentBatch, EncodedDocuments]:
    try:
        return pair[0], pair[1].result()
    except BrokenProcessPool:
        raise DataError(
            "a worker process ended (perhaps for lack of memory); repeat the command to continue, with fewer "
            "--processes"
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


def _encode(texts: Texts) -> EncodedDocuments:
    assert _encoder is not None
    return _encoder(texts)
