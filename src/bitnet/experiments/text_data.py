"""The data settings of the experiments on real text: which documents, which tokenizer, how much is judged."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from bitnet.bounds import MOST_DOCUMENTS, MOST_ROWS, within
from bitnet.corpus.documents import LocalFiles
from bitnet.corpus.holdout import ONE_IN
from bitnet.text.pretrained import why_not
from bitnet.train.config import RunConfig
from bitnet.train.data_config import DataConfig, Origin, ShortFlag

AUTO = "auto"
LLAMA2 = "meta-llama/Llama-2-7b-hf"


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


def text_data(config: RunConfig) -> TextData:
    """The data settings, known to be of this kind."""
    assert isinstance(config.data, TextData)
    return config.data
