"""What is prepared: a source of documents, which of them are held out, and how many are taken.

Everything that sees documents asks this one value, so that the tokenizer is trained on the same side of the
split as the model. Not here: reading (documents.py, hub.py), the rule itself (holdout.py).
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from bitnet.bounds import MOST_DOCUMENTS, MOST_TOKENS, SEEDS, within
from bitnet.corpus.documents import DocumentSource, LocalFiles, Skipped, usable_texts
from bitnet.corpus.holdout import ONE_IN, HoldOut, Role, choose_hold_out, content_hash, content_hashes
from bitnet.corpus.hub import HubDataset
from bitnet.errors import ConfigError
from bitnet.files import sha256_of
from bitnet.text.tokenizer import Tokenizer

RULE = 1  # changes when holdout.py decides otherwise about the same document


@dataclass(frozen=True)
class Corpus:
    """The documents of a run.

    validation: documents that are the held-out set and are never trained on; without it, one document in
    one_in is held out by its hash. max_documents, max_tokens: where to stop; held-out documents count in
    max_documents only.
    """

    source: DocumentSource
    validation: DocumentSource | None = None
    one_in: int = ONE_IN
    max_documents: int | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        within("--max-documents", self.max_documents, 1, MOST_DOCUMENTS)
        within("--max-tokens", self.max_tokens, 1, MOST_TOKENS + 1)
        within("--held-out-one-in", self.one_in, 2, MOST_DOCUMENTS)

    def settings(self, tokenizer: Tokenizer) -> dict[str, Any]:
        """What decides the token shards, as JSON."""
        values = {
            "source": self.source.identity(),
            "validation": self.validation.identity() if self.validation else None,
            "held_out": {"rule": RULE, "one_in": None if self.validation else self.one_in},
            "max_documents": self.max_documents,
            "max_tokens": self.max_tokens,
            "tokenizer_sha256": tokenizer.describe()["tokenizer_sha256"],
            "end_of_text": tokenizer.eos_id,
        }
        stored: dict[str, Any] = json.loads(json.dumps(values))
        return stored

    def key(self, tokenizer: Tokenizer) -> str:
        """A name for the settings, 16 hexadecimal digits."""
        return sha256_of(json.dumps(self.settings(tokenizer), sort_keys=True))[:16]

    @cached_property
    def hold_out(self) -> HoldOut:
        """The rule. Finding it reads all of a validation file, else the first few hundred documents."""
        if self.validation is None:
            return choose_hold_out(self.source, self.one_in, self.max_documents)
        return HoldOut(0, frozenset(content_hashes(self.validation)))

    def training_texts(self) -> Iterator[str]:
        """The documents that may be trained on, in order."""
        return self._for_training(islice(usable_texts(self.source), self.max_documents))

    def sampled_texts(self, count: int, seed: int, skipped: Skipped | None = None) -> Iterator[str]:
        """Documents that may be trained on, out of at most `count` drawn with the seed, each in its place.

        Files are counted first and then read again, so that none has to be kept; a stream, which is shuffled
        already, gives its first `count`. skipped: counts what was read and cannot be used. Raises DataError
        where nothing can.
        """
        total = None if self.source.size_bytes is None else sum(1 for _ in usable_texts(self.source))
        if total is None:
            return self._for_training(islice(usable_texts(self.source, skipped), count))
        if total <= count:
            return self._for_training(usable_texts(self.source, skipped))
        chosen = set(random.Random(seed).sample(range(total), count))
        return self._for_training(
            text for index, text in enumerate(usable_texts(self.source, skipped)) if index in chosen
        )

    def _for_training(self, texts: Iterable[str]) -> Iterator[str]:
        return (text for text in texts if self.hold_out.role(content_hash(text)) is Role.TRAIN)


def open_corpus(
    data: Sequence[str | Path] = (),
    *,
    dataset: str | None = None,
    split: str = "train",
    column: str = "text",
    validation: Sequence[str | Path] = (),
    one_in: int = ONE_IN,
    max_documents: int | None = None,
    max_tokens: int | None = None,
    seed: int = 42,
    revision: str | None = None,
    cache: Path | None = None,
) -> Corpus:
    """The corpus that a user's words describe. data, validation: files, folders, patterns; dataset: a name on
    the hub.

    revision: the data set's commit, else its newest; cache: a folder that remembers the newest for when there
    is no network.
    """
    within("--seed", seed, *SEEDS)
    if bool(data) == (dataset is not None):
        raise ConfigError(
            "name the data: either files, folders or patterns with --data, or a data set of the hub with "
            "--dataset"
        )
    source = (
        LocalFiles(data, column)
        if dataset is None
        else HubDataset(dataset, split=split, column=column, seed=seed, revision=revision, cache=cache)
    )
    return Corpus(
        source, LocalFiles(validation, column) if validation else None, one_in, max_documents, max_tokens
    )
