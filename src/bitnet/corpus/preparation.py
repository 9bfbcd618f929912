"""One pass over a corpus: several processes encode, this one writes, and a kill at any moment costs seconds.

Every few megabytes the files are flushed to disk, and `progress.json` notes how long each was and where
reading stood. Repeating the command truncates the files to that note and continues, so that no document is
missing or there twice, and the bytes are those of an uninterrupted run. The manifest is written last.
Not here: the folder and its lock (prepare.py), which documents are held out (holdout.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bitnet.allocator import return_freed_memory
from bitnet.corpus.corpus import Corpus
from bitnet.corpus.documents import DocumentSource
from bitnet.corpus.encode import DocumentBatch, EncodedDocuments, batches, encode_in_order
from bitnet.corpus.holdout import EVERYTHING, HoldOut, Role
from bitnet.corpus.shard_writer import SplitWriter
from bitnet.data.shards import FORMAT, MANIFEST, SPLITS, TOKENIZER, Shards, Split, token_dtype
from bitnet.errors import DataError
from bitnet.files import read_json, write_json
from bitnet.text.tokenizer import Tokenizer
from bitnet.units import duration, megabytes

PROGRESS = "progress.json"
SHARD_TOKENS = 1 << 26  # 128 MB of uint16
COMMIT_BYTES = 16 << 20
BROKEN_SHARE = 0.05
LEAST_HELD_OUT = 8  # documents: fewer are a poor measure, and one in a hundred of a short run's may be none
ROLES: dict[Split, Role] = {"train": Role.TRAIN, "held_out": Role.HELD_OUT}
COUNTED = ("documents", "tokens", "text_bytes")


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


def check_settings(out: Path, there: dict[str, Any], wanted: dict[str, Any], what: str) -> None:
    """Raise DataError that names the settings in which a folder differs. what: said of the folder."""
    different = [key for key in wanted if there.get(key) != wanted[key]]
    if different:
        raise DataError(
            f"{out} {what} (another {', '.join(different)}); delete it, or name another folder with --out"
        )


class Preparation:
    """One pass over a corpus, from the start or from where another was cut off."""

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: Tokenizer,
        out: Path,
        settings: dict[str, Any],
        report: Report | None,
        commit_bytes: int,
    ) -> None:
        """settings: what `corpus.settings(tokenizer)` gives. commit_bytes: of text between two notes."""
        self.corpus, self.tokenizer, self.out, self.settings = corpus, tokenizer, out, settings
        self.report, self.commit_bytes = report, commit_bytes
        self.dtype = token_dtype(tokenizer.vocab_size)

        self.state = self._continued() if (out / PROGRESS).exists() else self._begun()
        self.counts: dict[str, int] = self.state["counts"]
        self.writers: dict[Split, SplitWriter] = {}
        self.uncommitted = 0

        self.started, self.bytes_before = time.perf_counter(), self.counts["train_text_bytes"]
        self.first_fraction: float | None = None

    def _continued(self) -> dict[str, Any]:
        """The note of the process that was cut off."""
        path, fix = self.out / PROGRESS, f"delete {self.out} and begin again"
        try:
            state = read_json(path, fix=fix)
            what = "holds an unfinished preparation of other data"
            check_settings(self.out, state["settings"], self.settings, what)
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} is damaged ({error}); {fix}") from None
        return state

    def _begun(self) -> dict[str, Any]:
        """The note before the first document."""
        hold_out = self.corpus.hold_out
        self.tokenizer.save(self.out / TOKENIZER)
        names = [f"{split}_{what}" for split in SPLITS for what in COUNTED]
        return {
            "settings": self.settings,
            "below": str(hold_out.below),
            "reading": "validation" if self.corpus.validation else "source",
            "position": None,
            "first_broken": None,
            "counts": dict.fromkeys((*names, "equal_to_validation", "empty", "broken"), 0),
            "splits": dict.fromkeys(SPLITS),
        }

    def run(self, shard_tokens: int, processes: int) -> Shards:
        """Read, encode, write; the finished shards."""
        return_freed_memory()
        with ExitStack() as closing:
            for split in SPLITS:
                writer = SplitWriter(self.out, split, self.dtype, shard_tokens, self.state["splits"][split])
                self.writers[split] = closing.enter_context(writer)
            self._commit()

            if self.state["reading"] == "validation":
                assert self.corpus.validation is not None
                self._read(self.corpus.validation, EVERYTHING, processes)
                self.state |= {"reading": "source", "position": None}
                self._commit()
            self._read(self.corpus.source, self._hold_out(), processes)

            self._check()
            self._write_manifest()
        (self.out / PROGRESS).unlink()
        return Shards.open(self.out, self.tokenizer)

    def _hold_out(self) -> HoldOut:
        return self.corpus.hold_out if self.corpus.validation else HoldOut(int(self.state["below"]))

    def _read(self, source: DocumentSource, hold_out: HoldOut, processes: int) -> None:
        work = batches(source, self.state["position"])
        for batch, encoded in encode_in_order(work, self.out / TOKENIZER, hold_out, self.dtype, processes):
            full = self._take(batch, encoded)
            self.uncommitted += int(batch.texts.sizes.sum())
            if self.uncommitted >= self.commit_bytes:
                self._commit()
            self._tell(batch.fraction)
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
            for what, amount in zip(COUNTED, (len(lengths), lengths.sum(), text_bytes.sum()), strict=True):
                counts[f"{split}_{what}"] += int(amount)

        counts["equal_to_validation"] += int((taken & (encoded.roles == Role.DROPPED)).sum())
        counts["empty"] += batch.skipped.empty
        counts["broken"] += batch.skipped.broken
        self.state["position"] = batch.position
        self.state["first_broken"] = self.state["first_broken"] or batch.skipped.first_broken
        return full

    def _within_limits(self, encoded: EncodedDocuments) -> tuple[NDArray[np.bool_], bool]:
        """Which documents of a batch are taken, (D,), and whether that is the end.

        Where the tokens are enough but hardly any document is held out yet, reading goes on for held-out ones
        only: a short run on a large source has something to be measured on, and does not read the source to
        its end.
        """
        count, counts, corpus = len(encoded.roles), self.counts, self.corpus
        by_documents = by_tokens = count + 1  # beyond the batch: no limit is reached in it
        if self.state["reading"] == "validation":
            return np.ones(count, dtype=bool), False

        if corpus.max_documents is not None:
            held_out = 0 if corpus.validation else counts["held_out_documents"]
            wanted = corpus.max_documents - counts["train_documents"] - held_out
            by_documents = _how_many(encoded.roles != Role.DROPPED, wanted)
        if corpus.max_tokens is not None:
            tokens = np.where(encoded.roles == Role.TRAIN, encoded.lengths, 0)
            by_tokens = _how_many(tokens, corpus.max_tokens - counts["train_tokens"])

        end = min(by_documents, by_tokens)
        taken = np.arange(count) < end
        if by_documents <= count or by_tokens > count or corpus.validation:
            return taken, end <= count

        is_held_out = encoded.roles == Role.HELD_OUT
        missing = LEAST_HELD_OUT - counts["held_out_documents"] - int((taken & is_held_out).sum())
        more = np.flatnonzero(~taken & is_held_out)[: max(missing, 0)]
        taken[more] = True
        return taken, len(more) >= missing

    def _commit(self) -> None:
        """Everything so far is on disk, and noted."""
        self.state["splits"] = {split: writer.commit() for split, writer in self.writers.items()}
        write_json(self.out / PROGRESS, self.state)
        self.uncommitted = 0

    def _tell(self, source_fraction: float | None) -> None:
        """Report the progress to the caller. source_fraction: of the source, read so far."""
        if self.report is None:
            return
        counts, elapsed_s = self.counts, max(time.perf_counter() - self.started, 1e-9)
        fraction, eta_s = self._fraction(source_fraction), None
        if fraction is not None:
            self.first_fraction = fraction if self.first_fraction is None else self.first_fraction
            if fraction > self.first_fraction:
                eta_s = elapsed_s * (1 - fraction) / (fraction - self.first_fraction)

        documents, text_bytes, tokens = (
            counts[f"train_{name}"] for name in ("documents", "text_bytes", "tokens")
        )
        speed = (text_bytes - self.bytes_before) / 1e6 / elapsed_s
        self.report(Progress(documents, text_bytes, tokens, speed, fraction, eta_s))

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
        records = usable + counts["broken"]
        if counts["broken"] > BROKEN_SHARE * records:
            raise DataError(
                f"{counts['broken']:,} of {records:,} records are broken (first: "
                f"{self.state['first_broken']}); repair the files"
            )

        if not counts["train_documents"] or not counts["held_out_documents"]:
            side = "to train on" if not counts["train_documents"] else "in the held-out set"
            found = ", ".join(f"{name} {count:,}" for name, count in counts.items() if count)
            raise DataError(
                f"no document is left {side} ({found or 'the files are empty'}); give other or more files"
            )

    def _write_manifest(self) -> None:
        source, tokenizer = self.corpus.source, self.tokenizer
        manifest = {
            "format": FORMAT,
            "name": source.name,
            "hf_revision": source.revision,
            "settings": self.settings,
            "tokenizer": {**tokenizer.describe(), "tokenizer_vocab_size": tokenizer.vocab_size},
            "dtype": self.dtype,
            "counts": self.counts,
            "first_broken": self.state["first_broken"],
            "splits": {split: writer.finish() for split, writer in self.writers.items()},
        }
        write_json(self.out / MANIFEST, manifest)


def _how_many(amounts: NDArray[Any], wanted: int) -> int:
    """How many documents it takes until their amounts sum to what is wanted, or one more than there are.

    amounts: (D,), each at least 0.
    """
    return int(np.searchsorted(np.cumsum(amounts), wanted, side="left")) + 1 if wanted > 0 else 0
