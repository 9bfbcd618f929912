"""From documents to a tokenizer and token shards, which are made once and kept in `cache_dir`.

    documents, held out by their content's hash or not
        not held out -> tokenizer, training shards
        held out     -> held-out shards

Their names depend on everything that decides them, so that a second run finds them. The tokenizer sees
training documents only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from bitnet.corpus.corpus import Corpus, open_corpus
from bitnet.corpus.prepare import prepare_cached
from bitnet.data.shards import Shards
from bitnet.errors import BitnetError, ConfigError, DataError
from bitnet.experiments.text_data import TextData, text_data
from bitnet.files import sha256_of
from bitnet.text.bpe import train_bpe
from bitnet.text.characters import CharacterTokenizer
from bitnet.text.pretrained import find_tokenizer
from bitnet.text.tokenizer import Tokenizer, load_tokenizer, save_in_place
from bitnet.train.config import RunConfig
from bitnet.train.experiment import Watch

MADE_HERE = ("own", "characters")
# Characters of a stream that a tokenizer is made from. These are generous guesses: web text has some 4.5
# characters for each token.
STREAMED_PER_TOKEN, STREAMED_PER_ENTRY, STREAMED_PER_DOCUMENT = 8, 500, 5_000


def corpus_of(config: RunConfig) -> Corpus:
    """The documents of a run: all of its files, or as much of a data set of the hub as its tokens need."""
    data = text_data(config)
    named: dict[str, Any] = (
        {}
        if data.data
        else {"dataset": data.dataset, "revision": data.revision, "cache": Path(data.cache_dir)}
    )
    max_tokens = None if data.data else config.train.total_tokens + 1
    return open_corpus(
        data.data,
        **named,
        split=data.split,
        column=data.column,
        validation=data.validation,
        one_in=data.held_out_one_in,
        max_documents=data.max_documents,
        max_tokens=max_tokens,
        seed=config.train.seed,
    )


def ready_tokenizer(config: RunConfig, corpus: Corpus, watch: Watch | None = None) -> Tokenizer:
    """The run's tokenizer: found, or made from the training documents and kept. Raises ConfigError if it has
    more entries than the model.

    A tokenizer with fewer entries is taken, and the watch is told: the model's other rows are never a target.
    """
    data, entries = text_data(config), config.model.vocab_size
    data = data.settled(watch.say if watch else lambda text: None)
    made_here = data.tokenizer in MADE_HERE
    tokenizer = _made_tokenizer(data, config, corpus, watch) if made_here else find_tokenizer(data.tokenizer)

    if tokenizer.vocab_size > entries:
        raise ConfigError(
            f"the tokenizer {data.tokenizer} has {tokenizer.vocab_size:,} entries, the model {entries:,}; "
            f"say --model.vocab-size {tokenizer.vocab_size}"
        )
    if tokenizer.vocab_size < entries and watch:
        why = f"the text of {corpus.source.name} supports" if made_here else f"{data.tokenizer} has"
        watch.say(
            f"tokenizer: {why} {tokenizer.vocab_size:,} entries, the model has {entries:,}; the others are "
            "never used"
        )
    return tokenizer


def _made_tokenizer(data: TextData, config: RunConfig, corpus: Corpus, watch: Watch | None) -> Tokenizer:
    """The tokenizer kept for these settings, made where it is missing."""
    entries, seed = config.model.vocab_size, config.train.seed
    documents = min(data.tokenizer_documents, data.max_documents or data.tokenizer_documents)
    characters = _streamed_characters(config, documents) if corpus.source.size_bytes is None else None

    settings = {
        "kind": data.tokenizer,
        "entries": entries,
        "source": corpus.source.identity(),
        "seed": seed,
        "validation": corpus.validation.identity() if corpus.validation else None,
        "one_in": data.held_out_one_in,
        "documents": documents,
        **({} if characters is None else {"characters": characters}),
    }
    key = sha256_of(json.dumps(settings, sort_keys=True))[:16]
    folder = Path(data.cache_dir) / f"tokenizer-{plain(corpus.source.name)}-{entries}-{key}"
    if folder.is_dir():
        return _kept_tokenizer(folder)

    if watch:
        watch.say(
            f"tokenizer: finding {entries:,} entries in up to {documents:,} documents of {corpus.source.name}"
        )
    texts = _so_many(corpus.sampled_texts(documents, seed), characters)
    made: Tokenizer
    if data.tokenizer == "own":
        made = train_bpe(texts, entries, fewer=True, show_progress=watch is not None and watch.bars)
    else:
        made = CharacterTokenizer.count(texts, entries)
    try:
        save_in_place(made, folder)
    except DataError:
        if not folder.is_dir():  # otherwise another process has made it meanwhile
            raise
    return load_tokenizer(folder)


def _streamed_characters(config: RunConfig, documents: int) -> int:
    """How much of a stream the tokenizer is made from: no more than the run reads or than the entries are
    found in, and so much at most that all long runs share one tokenizer.
    """
    by_tokens = config.train.total_tokens * STREAMED_PER_TOKEN
    by_entries = config.model.vocab_size * STREAMED_PER_ENTRY
    return min(max(by_tokens, by_entries), documents * STREAMED_PER_DOCUMENT)


def _kept_tokenizer(folder: Path) -> Tokenizer:
    try:
        return load_tokenizer(folder)
    except BitnetError as error:
        raise DataError(
            f"the tokenizer kept in {folder} cannot be read ({error}); delete that folder, and it is made "
            "again"
        ) from None


def _so_many(texts: Iterable[str], characters: int | None) -> Iterator[str]:
    """Texts until they have so many characters, or all of them."""
    seen = 0
    for text in texts:
        yield text
        seen += len(text)
        if characters is not None and seen >= characters:
            return


def plain(name: str) -> str:
    """A name as part of a file name or run id."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:40]


def ready_shards(config: RunConfig, watch: Watch | None = None) -> tuple[Tokenizer, Shards]:
    """Tokenizer and token shards of a run, made where they are missing. A second call continues one that was
    interrupted.
    """
    corpus = corpus_of(config)
    tokenizer = ready_tokenizer(config, corpus, watch)
    shards = prepare_cached(
        corpus, tokenizer, Path(text_data(config).cache_dir), report=watch.progress if watch else None
    )
    if watch:
        train, held_out = shards.train, shards.held_out
        watch.say(
            f"data {shards.folder}: {train.documents:,} documents, {train.tokens:,} tokens of "
            f"{train.text_bytes / train.tokens:.2f} bytes; "
            f"held out {held_out.documents:,} documents, {held_out.tokens:,} tokens\n"
            f"the run reads the training tokens {config.train.total_tokens / train.tokens:.2f} times"
        )
    return tokenizer, shards


def ready(config: RunConfig, watch: Watch | None) -> str:
    """Make tokenizer and shards where they are missing. Returns the folder of the shards."""
    return str(ready_shards(config, watch)[1].folder.resolve())


def training_text(config: RunConfig, count: int) -> Iterator[str]:
    """`count` training documents as text, each followed by the line that ends it."""
    texts = corpus_of(config).training_texts()
    return (f"{text}\n<|endoftext|>\n" for text in islice(texts, count))
