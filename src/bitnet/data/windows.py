"""Rows for training out of token shards: every window once an epoch, in an order that is computed.

The training tokens are one long row, cut into windows of T + 1 tokens that overlap by one, so that each token
is a target once. Row r of a run is window permuted(r mod n) of epoch r // n, with n windows; the permutation
is a function of (seed, epoch), so that any step is read at once, by any number of processes, with nothing to
restore. A window may begin and end inside a document: the end-of-text id between two of them is learned like
any token, and padding does not occur. Not here: the files (shards.py), which rows an update reads
(stream.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitnet.data.permutation import permuted
from bitnet.data.shards import Shards
from bitnet.data.stream import Batch, shifted, source_facts
from bitnet.errors import ConfigError, DataError
from bitnet.text.tokenizer import Tokenizer

PUBLISHED: dict[str, tuple[float, str]] = {"HuggingFaceFW/fineweb-edu": (1.3e12, "1.3T (GPT-2 tokenization)")}
"""Size of a whole data set in tokens, as its page gives it
(huggingface.co/datasets/HuggingFaceFW/fineweb-edu)."""

MAX_EPOCHS = 4.0
"""More repetition than this has to be asked for: up to about four epochs are worth nearly as much as new data
(arXiv:2305.16264, for full-precision models)."""


class WindowRows:
    """An endless sequence of rows: the windows of the training shards, epoch after epoch."""

    def __init__(self, shards: Shards, *, seq_len: int, seed: int) -> None:
        """seq_len: targets per row. Raises DataError where the shards hold less than one row."""
        self.shards, self.seq_len, self.seed = shards, seq_len, seed
        self.windows = (shards.train.tokens - 1) // seq_len
        if self.windows < 1:
            raise DataError(
                f"{shards.folder} has {shards.train.tokens:,} training tokens, one row of {seq_len} needs "
                f"{seq_len + 1:,}; give more text or lower --seq-len"
            )

    def window_numbers(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which window each row shows. numbers: (B,), from 0."""
        return permuted(numbers % self.windows, self.windows, self.seed, numbers // self.windows)

    def rows(self, numbers: NDArray[np.int64]) -> Batch:
        """Batch of the rows with these numbers; every target counts."""
        starts = self.window_numbers(numbers) * self.seq_len
        windows = [self.shards.train.read(int(start), self.seq_len + 1) for start in starts]
        tokens = np.stack(windows)  # (B, T + 1)
        return shifted(tokens, np.ones(tokens.shape, dtype=bool))

    def epochs(self, rows: int) -> float:
        """How often a run of so many rows reads each window."""
        return rows / self.windows

    def check_epochs(self, rows: int, *, allow_repeat: bool) -> float:
        """The epochs of a run. Raises ConfigError above MAX_EPOCHS, unless that was asked for."""
        epochs = self.epochs(rows)
        if epochs > MAX_EPOCHS and not allow_repeat:
            raise ConfigError(
                f"the run reads {rows * self.seq_len:,} tokens and the data has "
                f"{self.shards.train.tokens:,}, which makes {epochs:.1f} epochs; above {MAX_EPOCHS:g}, lower "
                "--num-steps, give more text, or say --allow-repeat"
            )
        return epochs

    def fingerprint(self) -> dict[str, Any]:
        """What the data is: name, sizes, hashes of shards and of their first tokens."""
        manifest, train, held_out = self.shards.manifest, self.shards.train, self.shards.held_out
        size, told, strategy = corpus_facts(self.shards)
        return {
            **source_facts(manifest["name"], train.tokens, train.read(0, 1000), manifest["hf_revision"]),
            "sampling_strategy": "each_window_once_per_epoch",
            "tokenizer_vocab_size": manifest["tokenizer"]["tokenizer_vocab_size"],
            "tokenizer_sha256": manifest["tokenizer"]["tokenizer_sha256"],
            "documents": train.documents,
            "text_bytes": train.text_bytes,
            "windows_per_epoch": self.windows,
            "train_sha256": [entry["bin_sha256"] for entry in manifest["splits"]["train"]],
            "held_out_documents": held_out.documents,
            "held_out_tokens": held_out.tokens,
            "held_out_sha256": [entry["bin_sha256"] for entry in manifest["splits"]["held_out"]],
            "corpus_tokens": size,
            "corpus_size": told,
            "corpus_sampling": strategy,
        }


def corpus_facts(shards: Shards) -> tuple[float | None, str | int | None, str]:
    """Tokens of the whole corpus that the shards were taken from, the same in its publisher's words, and how
    it was sampled.

    None where nobody says how large it is and it was not read to its end.
    """
    settings, read = shards.manifest["settings"], shards.train.tokens + shards.held_out.tokens
    dataset = settings["source"].get("dataset")
    if dataset is not None:
        size, told = PUBLISHED.get(dataset, (None, None))
        return size, told, "streaming_random"
    documents = shards.train.documents + shards.held_out.documents
    most_documents, most_tokens = (settings[name] or math.inf for name in ("max_documents", "max_tokens"))
    if documents < most_documents and shards.train.tokens < most_tokens:
        return read, read, "every_document"
    return None, None, "first_documents"


def text_batches(
    texts: Iterable[str], tokenizer: Tokenizer, *, seq_len: int, batch_size: int
) -> Iterator[Batch]:
    """Every token of the texts as targets, in batches of windows as training has them; the last one is
    padded.
    """
    waiting = np.empty(0, dtype=np.int64)
    size = batch_size * seq_len
    for text in texts:
        ids = tokenizer.encode_array(text).astype(np.int64)
        waiting = np.concatenate([waiting, ids, np.array([tokenizer.eos_id])])
        while len(waiting) > size:
            yield _overlapping(waiting[: size + 1], seq_len, tokenizer.pad_id)
            waiting = waiting[size:]
    if len(waiting) > 1:
        yield _overlapping(waiting, seq_len, tokenizer.pad_id)


def _overlapping(tokens: NDArray[np.int64], seq_len: int, pad_id: int) -> Batch:
    """A row of tokens as windows that overlap by one."""
    starts = range(0, len(tokens) - 1, seq_len)
    return _padded([tokens[start : start + seq_len + 1] for start in starts], seq_len, pad_id)


def _padded(parts: Sequence[NDArray[np.int64]], seq_len: int, pad_id: int) -> Batch:
    """One row for each part, of at most seq_len + 1 tokens; padding is not scored."""
    tokens = np.full((len(parts), seq_len + 1), pad_id, dtype=np.int64)
    real = np.zeros(tokens.shape, dtype=bool)
    for row, part in enumerate(parts):
        tokens[row, : len(part)], real[row, : len(part)] = part, True
    return shifted(tokens, real)


def held_out_batches(
    shards: Shards, *, seq_len: int, batch_size: int, max_windows: int, pad_id: int
) -> list[Batch]:
    """Windows of the held-out documents, at most max_windows, spread evenly over them, always the same.

    The windows cover every token; the last one is padded, and padding is not scored.
    """
    stream = shards.held_out
    there = -(-(stream.tokens - 1) // seq_len)
    if there < 1:
        raise DataError(
            f"{shards.folder} has {stream.tokens} held-out tokens, too few to measure a loss; hold out more "
            "documents"
        )
    count = min(there, max_windows)
    windows = np.arange(count) * there // count
    parts = [stream.read(int(window) * seq_len, seq_len + 1) for window in windows]
    starts = range(0, count, batch_size)
    return [_padded(parts[first : first + batch_size], seq_len, pad_id) for first in starts]
