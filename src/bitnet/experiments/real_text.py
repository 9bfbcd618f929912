"""What the experiments on real text share: settings, the way from documents to rows, and the judge.

    documents, held out by their content's hash or not
        not held out -> tokenizer, training shards -> windows
        held out -> held-out shards -> loss, beginnings that the judge has continued

The tokenizer and the shards are made once and kept in `cache_dir` under a name that depends on everything
that decides them; a second run finds them. Both see training documents only. The judge has two parts: the
loss on held-out text, and numbers about what the model writes after the beginnings of held-out documents
(evaluate/writing.py). Not here: any experiment (tinystories.py, baseline.py).
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

from bitnet.bounds import MOST_DOCUMENTS, MOST_ROWS, within
from bitnet.corpus.corpus import Corpus, open_corpus
from bitnet.corpus.documents import LocalFiles
from bitnet.corpus.holdout import ONE_IN
from bitnet.corpus.prepare import prepare_cached
from bitnet.data.shards import Shards
from bitnet.data.stream import Batch, RowSource
from bitnet.data.windows import WindowRows, held_out_batches
from bitnet.errors import BitnetError, ConfigError, DataError
from bitnet.evaluate.continuations import Mode, continued_ids
from bitnet.evaluate.loss import held_out_loss
from bitnet.evaluate.writing import looping, vocabulary, writing_metrics
from bitnet.files import sha256_of
from bitnet.nn.transformer import BitNetTransformer
from bitnet.text.bpe import train_bpe
from bitnet.text.characters import CharacterTokenizer
from bitnet.text.pretrained import find_tokenizer, why_not
from bitnet.text.tokenizer import Tokenizer, load_tokenizer, save_in_place
from bitnet.train.config import RunConfig, TrainConfig
from bitnet.train.data_config import DataConfig, Origin, ShortFlag
from bitnet.train.experiment import Shown, Watch

AUTO = "auto"
HEADLINE = ("bits_per_byte",)
MADE_HERE = ("own", "characters")
LLAMA2 = "meta-llama/Llama-2-7b-hf"
# How much of a stream a tokenizer is made from: guesses, generous ones, as web text has some 4.5 characters
# for each token.
STREAMED_PER_TOKEN, STREAMED_PER_ENTRY, STREAMED_PER_DOCUMENT = 8, 500, 5_000
PROMPT_TOKENS = (6, 12, 20, 28, 36)  # several beginnings of one document, since small corpora hold few out
NEW_TOKENS = 64
JUDGED_ROWS = 16  # windows of a batch when the held-out loss is measured
KNOWN_TOKENS = 20_000_000  # training tokens whose words count as known; more would find names and misprints


@dataclass(frozen=True, kw_only=True)
class TextData(DataConfig):
    """Which documents, which tokenizer, and how much is judged."""

    split: str = "train"
    column: str = "text"
    data: tuple[str, ...] = ()
    """Local files instead of the data set of the hub."""
    validation: tuple[str, ...] = ()
    """Files that are the held-out set; without it documents are held out by a hash."""
    held_out_one_in: int = ONE_IN
    tokenizer: str = "own"
    """own: byte-level BPE of model.vocab_size entries, or as many as the text supports; characters; a folder;
    or a name on the hub."""
    tokenizer_documents: int = 100_000
    max_documents: int | None = None
    """Documents to take at most."""
    revision: str | None = None
    """Commit of the data set on the hub; its newest one when not given."""
    allow_repeat: bool = False
    """Permit more than four passes over the data."""
    eval_sequences: int = 64
    """Held-out windows that the loss is measured on during training."""
    judged_sequences: int = 400
    """Held-out windows that `bitnet evaluate` measures the loss on."""
    judged_prompts: int = 200
    cache_dir: str = "cache"
    """Where tokenizers and token shards are kept."""

    outside: ClassVar[tuple[str, ...]] = ("dataset", "data", "validation", "tokenizer", "cache_dir")
    short_flags: ClassVar[tuple[ShortFlag, ...]] = (
        ShortFlag(
            "data",
            "data",
            "Files, folders or patterns to train on (.txt, .jsonl, .parquet; .gz, .xz, .zst), not the hub's "
            "data.",
        ),
        ShortFlag("validation", "validation", "Files that are the held-out set and are never trained on."),
        ShortFlag("column", "column", "Column with the text."),
        ShortFlag(
            "tokenizer",
            "tokenizer",
            "own (from the data), auto (LLaMA-2's, own without access to it), characters, a folder or hub "
            "name.",
        ),
        ShortFlag("cache-dir", "cache_dir", "Where tokenizers and token shards are kept."),
        ShortFlag("allow-repeat", "allow_repeat", "Permit more than four passes over the data."),
    )

    def __post_init__(self) -> None:
        for name in ("tokenizer_documents", "max_documents"):
            within(f"data.{name}", getattr(self, name), 1, MOST_DOCUMENTS)
        within("data.held_out_one_in", self.held_out_one_in, 2, MOST_DOCUMENTS)
        for name in ("eval_sequences", "judged_sequences", "judged_prompts"):
            within(f"data.{name}", getattr(self, name), 1, MOST_ROWS)

    def with_flags(self, given: Mapping[str, Any]) -> Self:
        """With local files the data set is called by their name. Raises DataError where there are none."""
        data = super().with_flags({**given, "data": given.get("data") or self.data})
        if not data.data:
            return data
        return dataclasses.replace(data, dataset=LocalFiles(data.data, data.column).name)

    def begun_from(self, origin: Origin) -> Self:
        """A run that begins from another run reads with its tokenizer."""
        return dataclasses.replace(self, tokenizer=origin.tokenizer)

    def settled(self, say: Callable[[str], None]) -> Self:
        """With `auto` settled: LLaMA-2's tokenizer, as the plan has it, where the user has access to it, else
        one of our own.
        """
        if self.tokenizer != AUTO:
            return self
        refusal = why_not(LLAMA2)
        say(
            f"tokenizer: {LLAMA2}, as the plan has it"
            if refusal is None
            else f"tokenizer: our own, since {LLAMA2} cannot be had ({refusal})"
        )
        return dataclasses.replace(self, tokenizer="own" if refusal else LLAMA2)

    def derived(self) -> dict[str, Any]:
        """Whether documents are streamed from the hub. A stream is read no further than the run needs, files
        are read whole.
        """
        return {"streaming": not self.data}


class Prompt(NamedTuple):
    """A beginning of a held-out document, and how it went on."""

    ids: list[int]
    rest: list[int]


def corpus_of(config: RunConfig) -> Corpus:
    """The documents of a run. From the hub no more than the run's tokens need, from files all."""
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


def text_data(config: RunConfig) -> TextData:
    """The data settings, known to be of this kind."""
    assert isinstance(config.data, TextData)
    return config.data


def ready_tokenizer(config: RunConfig, corpus: Corpus, watch: Watch | None = None) -> Tokenizer:
    """The run's tokenizer: found, or made from the training documents and kept. Raises ConfigError if the
    model is too small for it.

    One with fewer entries than the model is taken, and said: the model's other rows are then never a target.
    """
    data, entries = text_data(config), config.model.vocab_size
    data = data.settled(watch.say if watch else lambda text: None)
    made_here = data.tokenizer in MADE_HERE
    tokenizer = _made_tokenizer(data, config, corpus, watch) if made_here else find_tokenizer(data.tokenizer)
    if tokenizer.vocab_size < entries and watch:
        why = f"the text of {corpus.source.name} supports" if made_here else f"{data.tokenizer} has"
        watch.say(
            f"tokenizer: {why} {tokenizer.vocab_size:,} entries, the model has {entries:,}; the others are "
            "never used"
        )
    if tokenizer.vocab_size > entries:
        raise ConfigError(
            f"the tokenizer {data.tokenizer} has {tokenizer.vocab_size:,} entries, the model {entries:,}; "
            f"say --model.vocab-size {tokenizer.vocab_size}"
        )
    return tokenizer


def _made_tokenizer(data: TextData, config: RunConfig, corpus: Corpus, watch: Watch | None) -> Tokenizer:
    entries, seed = config.model.vocab_size, config.train.seed
    documents = min(data.tokenizer_documents, data.max_documents or data.tokenizer_documents)
    settings = {
        "kind": data.tokenizer,
        "entries": entries,
        "source": corpus.source.identity(),
        "seed": seed,
        "validation": corpus.validation.identity() if corpus.validation else None,
        "one_in": data.held_out_one_in,
        "documents": documents,
    }
    characters = None
    if (
        corpus.source.size_bytes is None
    ):  # a stream: no more of it than the run reads, or than the entries are found in
        characters = max(config.train.total_tokens * STREAMED_PER_TOKEN, entries * STREAMED_PER_ENTRY)
        characters = min(
            characters, documents * STREAMED_PER_DOCUMENT
        )  # so that all long runs share one tokenizer
        settings["characters"] = characters
    key = sha256_of(json.dumps(settings, sort_keys=True))[:16]
    folder = Path(data.cache_dir) / f"tokenizer-{plain(corpus.source.name)}-{entries}-{key}"
    if folder.is_dir():
        try:
            return load_tokenizer(folder)
        except BitnetError as error:
            raise DataError(
                f"the tokenizer kept in {folder} cannot be read ({error}); delete that folder, and it is "
                "made again"
            ) from None
    if watch:
        watch.say(
            f"tokenizer: finding {entries:,} entries in up to {documents:,} documents of {corpus.source.name}"
        )
    texts = _so_many(corpus.sampled_texts(documents, seed), characters)
    bars = watch is not None and watch.bars
    own = data.tokenizer == "own"
    made: Tokenizer = (
        train_bpe(texts, entries, fewer=True, show_progress=bars)
        if own
        else CharacterTokenizer.count(texts, entries)
    )
    try:
        save_in_place(made, folder)
    except DataError:
        if not folder.is_dir():  # or another process has made it meanwhile
            raise
    return load_tokenizer(folder)


def _so_many(texts: Iterable[str], characters: int | None) -> Iterator[str]:
    """Texts until they have so many characters; all where that is None."""
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
    """Tokenizer and token shards of a run, made where they are missing. Interrupted, it goes on where it
    was.
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


class TextTask:
    """Real text with its judge. Opening it makes what is missing of tokenizer and shards."""

    end_mark = None

    def __init__(self, config: RunConfig, prompts: Sequence[str]) -> None:
        """Raises BitnetError where the data cannot be had, or would be repeated more than was allowed."""
        self.config, self.data, self.prompts = config, text_data(config), prompts
        train = config.train
        self.tokenizer, self.shards = ready_shards(config)
        windows = WindowRows(self.shards, seq_len=train.seq_len, seed=train.seed)
        windows.check_epochs(rows_of(train), allow_repeat=self.data.allow_repeat)
        self.source: RowSource = windows

    def frozen_evaluation(self) -> list[Batch]:
        """Windows of the held-out documents."""
        return self._windows(self.data.eval_sequences)

    def _windows(self, count: int) -> list[Batch]:
        return held_out_batches(
            self.shards,
            seq_len=self.config.train.seq_len,
            batch_size=JUDGED_ROWS,
            max_windows=count,
            pad_id=self.tokenizer.pad_id,
        )

    @cached_property
    def known_words(self) -> frozenset[str]:
        """Words of the training text."""
        return vocabulary(
            self.tokenizer.decode(ids.tolist())
            for ids in _until(self.shards.train.each_document(), KNOWN_TOKENS)
        )

    @cached_property
    def held_out_prompts(self) -> list[Prompt]:
        """Different beginnings of held-out documents, of several lengths, each cut where a word begins."""
        found: dict[tuple[int, ...], Prompt] = {}
        documents = [
            ids.tolist() for ids in islice(self.shards.held_out.each_document(), self.data.judged_prompts)
        ]
        for tokens in PROMPT_TOKENS:
            for ids in documents:
                cut = self._word_start(ids, tokens)
                if cut and len(found) < self.data.judged_prompts:
                    found.setdefault(tuple(ids[:cut]), Prompt(ids[:cut], ids[cut:]))
        if not found:
            raise DataError(
                f"no held-out document of {self.shards.folder} has {PROMPT_TOKENS[0]} tokens to begin with; "
                "hold out more"
            )
        return list(found.values())

    def _word_start(self, ids: list[int], most: int) -> int:
        """The last place up to `most` tokens where a word begins, so that no prompt ends inside one; 0 where
        there is none.
        """
        starts = (
            cut
            for cut in range(min(most, len(ids) - 1), 0, -1)
            if self.tokenizer.decode([ids[cut]])[:1].isspace()
        )
        return next(starts, 0)

    def judge(self, model: BitNetTransformer, limit: int | None = None) -> dict[str, float]:
        """Numbers about the writing; without a limit also the loss over judged_sequences windows."""
        prompts = self.held_out_prompts[:limit]
        beginnings = [self.tokenizer.decode(prompt.ids) for prompt in prompts]
        sampled, greedy = (self._continued(model, prompts, mode) for mode in ("typical", "greedy"))
        metrics = writing_metrics(sampled, self.known_words, prompts=beginnings)
        stuck = [looping(text) for text in greedy]
        metrics |= {"greedy_looping": sum(stuck) / len(stuck), "greedy_looping_cases": float(len(stuck))}
        if limit is None:
            metrics |= held_out_loss(model, self._windows(self.data.judged_sequences), self.tokenizer)
        return metrics

    def show(self, model: BitNetTransformer, count: int) -> list[Shown]:
        """A few held-out beginnings with what the model makes of them, sampled; there is no right answer."""
        prompts = self.held_out_prompts[:count]
        texts = self._continued(model, prompts, "typical")
        return [
            Shown(self.tokenizer.decode(prompt.ids), text, None)
            for prompt, text in zip(prompts, texts, strict=True)
        ]

    def _continued(self, model: BitNetTransformer, prompts: Sequence[Prompt], mode: Mode) -> list[str]:
        room = model.config.max_seq_length - max(len(prompt.ids) for prompt in prompts)
        ids = continued_ids(
            model,
            [prompt.ids for prompt in prompts],
            stop_id=self.tokenizer.eos_id,
            mode=mode,
            max_new_tokens=min(NEW_TOKENS, room),
        )
        return [self.tokenizer.decode(row) for row in ids]


def rows_of(train: TrainConfig) -> int:
    """Rows that a run reads in all, in one process."""
    return train.total_steps * train.batch_size * train.grad_accumulation_steps


def _until(documents: Iterable[Any], tokens: int) -> Iterator[Any]:
    """Documents until they have so many tokens."""
    seen = 0
    for ids in documents:
        if seen >= tokens:
            return
        seen += len(ids)
        yield ids


def training_text(config: RunConfig, count: int) -> Iterator[str]:
    """`count` training documents as text, each followed by the line that ends it."""
    texts = corpus_of(config).training_texts()
    return (f"{text}\n<|endoftext|>\n" for text in islice(texts, count))
