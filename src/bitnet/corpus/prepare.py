"""Documents to token shards: several processes encode, this one writes, and a kill at any moment costs
seconds.

Every few megabytes the files are flushed to disk and `progress.json` notes how long each was and where
reading stood. Whoever repeats the command cuts the files back to that note and goes on, so that no document
is missing or there twice, and the bytes are those of an uninterrupted run. The manifest is written last.
Functions here print nothing; they call back. Not here: the shards' format and how they are read (shards.py),
which documents are held out (holdout.py).
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bitnet.allocator import return_freed_memory
from bitnet.bounds import within
from bitnet.corpus.corpus import Corpus
from bitnet.corpus.documents import DocumentSource
from bitnet.corpus.encode import DocumentBatch, EncodedDocuments, batches, encode_in_order
from bitnet.corpus.holdout import EVERYTHING, HoldOut, Role
from bitnet.corpus.shard_writer import SplitWriter
from bitnet.data.shards import FORMAT, MANIFEST, SPLITS, TOKENIZER, Shards, Split, token_dtype
from bitnet.errors import DataError
from bitnet.files import lock, open_to_append, read_json, sweep, write_json
from bitnet.text.tokenizer import Tokenizer
from bitnet.units import duration, megabytes

PROGRESS = "progress.json"
LOCK = ".lock"
SHARD_TOKENS = 1 << 26  # 128 MB of uint16
COMMIT_BYTES = 16 << 20
MOST_PROCESSES = 1024
SMALL_BYTES = 4 << 20  # less than this is encoded sooner than a second process starts
BROKEN_SHARE = 0.05
LEAST_HELD_OUT = (
    8  # documents: fewer would be a poor measure, and one in a hundred of a short run's may be none
)
ROLES: dict[Split, Role] = {"train": Role.TRAIN, "held_out": Role.HELD_OUT}


class Progress(NamedTuple):
    """How far the encoding is. documents, text_bytes and tokens count the training split of all calls;
    mb_per_s is the speed of this call in 10^6 bytes of text. str() gives one line for people.
    """

    documents: int
    text_bytes: int
    tokens: int
    mb_per_s: float
    fraction: float | None
    eta_s: float | None

    def __str__(self) -> str:
        done = "" if self.fraction is None else f"{self.fraction:6.1%}  "
        left = "" if self.eta_s is None else f"  about {duration(self.eta_s)} to go"
        text = f"{self.documents:,} documents  {megabytes(self.text_bytes)}  {self.tokens:,} tokens"
        return f"{done}{text}  {self.mb_per_s:.1f} MB/s{left}"


Report = Callable[[Progress], None]


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
    return prepare(
        corpus, tokenizer, cache / f"{words}-{corpus.key(tokenizer)}", processes=processes, report=report
    )


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
        with exclusive(out):
            if (out / MANIFEST).exists():
                finished = Shards.open(out, tokenizer)
                _check_settings(out, finished.manifest["settings"], settings, "holds other data")
            else:
                work = Preparation(
                    corpus,
                    tokenizer,
                    out,
                    settings,
                    processes or _processes(corpus.source),
                    report,
                    commit_bytes,
                )
                return work.run(shard_tokens)
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
def exclusive(out: Path) -> Iterator[None]:
    """Hold the folder's lock; a lock left by a dead process never blocks. Refuses a folder with other
    content.
    """
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file; name a folder with --out")
    if (
        out.is_dir()
        and any(out.iterdir())
        and not any((out / name).exists() for name in (MANIFEST, PROGRESS, LOCK))
    ):
        raise DataError(f"{out} holds other files; name a new or empty folder with --out")
    made = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    with open_to_append(out / LOCK) as file:
        if not lock(file) or not _is_still(out / LOCK, file):
            raise DataError(f"another process is preparing {out}; wait for it, or name another folder")
        sweep(out)
        try:
            yield
        finally:
            with suppress(OSError):  # what was refused is what the user should read
                if [path.name for path in out.iterdir()] == [LOCK]:  # nothing was written
                    (out / LOCK).unlink()
                    if made:
                        out.rmdir()


def _is_still(path: Path, file: IO[Any]) -> bool:
    """Whether an open file has its name yet: another process may have removed it when it was done."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _check_settings(out: Path, there: dict[str, Any], wanted: dict[str, Any], what: str) -> None:
    different = [key for key in wanted if there.get(key) != wanted[key]]
    if different:
        raise DataError(
            f"{out} {what} (another {', '.join(different)}); delete it, or name another folder with --out"
        )


def _until(amounts: NDArray[Any], wanted: int) -> int:
    """How many documents it takes until their amounts sum to what is wanted; one more than there are if they
    do not.
    """
    return int(np.searchsorted(np.cumsum(amounts), wanted, side="left")) + 1 if wanted > 0 else 0


class Preparation:
    """One pass over a corpus, from the start or from where another was cut off."""

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: Tokenizer,
        out: Path,
        settings: dict[str, Any],
        processes: int,
        report: Report | None,
        commit_bytes: int,
    ) -> None:
        self.corpus, self.tokenizer, self.out, self.settings = corpus, tokenizer, out, settings
        self.processes, self.report, self.commit_bytes = processes, report, commit_bytes
        self.dtype = token_dtype(tokenizer.vocab_size)
        self.state = self._begin()
        self.counts: dict[str, int] = self.state["counts"]
        self.started, self.bytes_before = time.perf_counter(), self.counts["train_text_bytes"]
        self.first_fraction: float | None = None
        self.uncommitted = 0
        self.writers: dict[Split, SplitWriter] = {}

    def _begin(self) -> dict[str, Any]:
        """The note of the process that was cut off, or a new one."""
        path = self.out / PROGRESS
        if path.exists():
            try:
                state = read_json(path, fix=f"delete {self.out} and begin again")
                _check_settings(
                    self.out,
                    state["settings"],
                    self.settings,
                    "holds an unfinished preparation of other data",
                )
            except (KeyError, TypeError, AttributeError) as error:
                raise DataError(f"{path} is damaged ({error}); delete {self.out} and begin again") from None
            return state
        hold_out = self.corpus.hold_out
        self.tokenizer.save(self.out / TOKENIZER)
        names = [f"{split}_{what}" for split in SPLITS for what in ("documents", "tokens", "text_bytes")]
        return {
            "settings": self.settings,
            "below": str(hold_out.below),
            "reading": "validation" if self.corpus.validation else "source",
            "position": None,
            "first_broken": None,
            "counts": dict.fromkeys((*names, "equal_to_validation", "empty", "broken"), 0),
            "splits": dict.fromkeys(SPLITS),
        }

    def run(self, shard_tokens: int) -> Shards:
        """Read, encode, write; the finished shards."""
        return_freed_memory()
        with ExitStack() as closing:
            for split in SPLITS:
                writer = SplitWriter(self.out, split, self.dtype, shard_tokens, self.state["splits"][split])
                self.writers[split] = closing.enter_context(writer)
            self._commit()
            if self.state["reading"] == "validation":
                assert self.corpus.validation is not None
                self._read(self.corpus.validation, EVERYTHING)
                self.state |= {"reading": "source", "position": None}
                self._commit()
            self._read(self.corpus.source, self._hold_out())
            self._check()
            self._write_manifest()
        (self.out / PROGRESS).unlink()
        return Shards.open(self.out, self.tokenizer)

    def _hold_out(self) -> HoldOut:
        return self.corpus.hold_out if self.corpus.validation else HoldOut(int(self.state["below"]))

    def _read(self, source: DocumentSource, hold_out: HoldOut) -> None:
        work = batches(source, self.state["position"])
        for batch, encoded in encode_in_order(
            work, self.out / TOKENIZER, hold_out, self.dtype, self.processes
        ):
            full = self._take(batch, encoded)
            self.uncommitted += int(batch.texts.sizes.sum())
            if self.uncommitted >= self.commit_bytes:
                self._commit()
            self._report(batch.fraction)
            if full:
                break

    def _take(self, batch: DocumentBatch, encoded: EncodedDocuments) -> bool:
        """Write a batch. Returns whether a limit was reached; documents after it are left out."""
        taken, full = self._within_limits(encoded)
        counts = self.counts
        for split, role in ROLES.items():
            chosen = taken & (encoded.roles == role)
            lengths, text_bytes = encoded.lengths[chosen], batch.texts.sizes[chosen]
            self.writers[split].add(encoded.tokens[np.repeat(chosen, encoded.lengths)], lengths, text_bytes)
            for what, amount in (
                ("documents", len(lengths)),
                ("tokens", lengths.sum()),
                ("text_bytes", text_bytes.sum()),
            ):
                counts[f"{split}_{what}"] += int(amount)
        counts["equal_to_validation"] += int((taken & (encoded.roles == Role.DROPPED)).sum())
        counts["empty"] += batch.skipped.empty
        counts["broken"] += batch.skipped.broken
        self.state |= {
            "position": batch.position,
            "first_broken": self.state["first_broken"] or batch.skipped.first_broken,
        }
        return full

    def _within_limits(self, encoded: EncodedDocuments) -> tuple[NDArray[np.bool_], bool]:
        """Which documents of a batch are taken, (D,), and whether that is the end.

        Where the tokens are enough but hardly any document is held out yet, reading goes on for held-out ones
        only: a short run on a large source has something to be measured on, and does not read the source to
        its end.
        """
        count, counts = len(encoded.roles), self.counts
        numbers = np.arange(count)
        by_documents = by_tokens = count + 1
        if self.state["reading"] == "validation":
            return numbers < by_documents, False
        if self.corpus.max_documents is not None:
            before = counts["train_documents"] + (
                0 if self.corpus.validation else counts["held_out_documents"]
            )
            by_documents = _until(encoded.roles != Role.DROPPED, self.corpus.max_documents - before)
        if self.corpus.max_tokens is not None:
            tokens = np.where(encoded.roles == Role.TRAIN, encoded.lengths, 0)
            by_tokens = _until(tokens, self.corpus.max_tokens - counts["train_tokens"])
        taken = numbers < min(by_documents, by_tokens)
        if by_documents <= count or by_tokens > count or self.corpus.validation:
            return taken, min(by_documents, by_tokens) <= count
        wanted = (
            LEAST_HELD_OUT
            - counts["held_out_documents"]
            - int((taken & (encoded.roles == Role.HELD_OUT)).sum())
        )
        more = np.flatnonzero(~taken & (encoded.roles == Role.HELD_OUT))[: max(wanted, 0)]
        taken[more] = True
        return taken, len(more) >= wanted

    def _commit(self) -> None:
        """Everything so far is on disk, and noted."""
        self.state["splits"] = {split: writer.commit() for split, writer in self.writers.items()}
        write_json(self.out / PROGRESS, self.state)
        self.uncommitted = 0

    def _report(self, source_fraction: float | None) -> None:
        if self.report is None:
            return
        counts, elapsed = self.counts, max(time.perf_counter() - self.started, 1e-9)
        fraction = self._fraction(source_fraction)
        eta = None
        if fraction is not None:
            self.first_fraction = fraction if self.first_fraction is None else self.first_fraction
            if fraction > self.first_fraction:
                eta = elapsed * (1 - fraction) / (fraction - self.first_fraction)
        speed = (counts["train_text_bytes"] - self.bytes_before) / 1e6 / elapsed
        self.report(
            Progress(
                counts["train_documents"],
                counts["train_text_bytes"],
                counts["train_tokens"],
                speed,
                fraction,
                eta,
            )
        )

    def _fraction(self, source_fraction: float | None) -> float | None:
        """The furthest of: the source read, the documents taken, the tokens made."""
        if self.state["reading"] == "validation":
            return None
        shares = [] if source_fraction is None else [source_fraction]
        if self.corpus.max_documents:
            shares.append(self.counts["train_documents"] / self.corpus.max_documents)
        if self.corpus.max_tokens:
            shares.append(self.counts["train_tokens"] / self.corpus.max_tokens)
        return min(max(shares), 1.0) if shares else None

    def _check(self) -> None:
        """Raise DataError for data that should not be trained on."""
        counts = self.counts
        usable = counts["train_documents"] + counts["held_out_documents"] + counts["equal_to_validation"]
        first = self.state["first_broken"]
        if counts["broken"] > BROKEN_SHARE * (usable + counts["broken"]):
            raise DataError(
                f"{counts['broken']:,} of {usable + counts['broken']:,} records are broken (first: {first}); "
                "repair the files"
            )
        if not counts["train_documents"] or not counts["held_out_documents"]:
            side = "to train on" if not counts["train_documents"] else "in the held-out set"
            found = ", ".join(f"{name} {count:,}" for name, count in counts.items() if count)
            raise DataError(
                f"no document is left {side} ({found or 'the files are empty'}); give other or more files"
            )

    def _write_manifest(self) -> None:
        source, splits = (
            self.corpus.source,
            {split: writer.finish() for split, writer in self.writers.items()},
        )
        described = {**self.tokenizer.describe(), "tokenizer_vocab_size": self.tokenizer.vocab_size}
        manifest = {
            "format": FORMAT,
            "name": source.name,
            "hf_revision": source.revision,
            "settings": self.settings,
            "tokenizer": described,
            "dtype": self.dtype,
            "counts": self.counts,
            "first_broken": self.state["first_broken"],
            "splits": splits,
        }
        write_json(self.out / MANIFEST, manifest)
