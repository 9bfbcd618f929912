"""What the experiments on real text share: their task, and its judge.

The judge has two parts: the loss on held-out text, and numbers about what the model writes after the
beginnings of held-out documents (evaluate/writing.py). Not here: the settings (text_data.py), and how
tokenizer and shards are made (ready_text.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from typing import Any, NamedTuple

from bitnet.data.stream import Batch, RowSource
from bitnet.data.windows import WindowRows, held_out_batches
from bitnet.errors import DataError
from bitnet.evaluate.answers import shares
from bitnet.evaluate.continuations import Mode, continued_ids
from bitnet.evaluate.loss import held_out_loss
from bitnet.evaluate.writing import looping, vocabulary, writing_metrics
from bitnet.experiments.ready_text import ready_shards
from bitnet.experiments.text_data import text_data
from bitnet.generate.decoder import Decoder
from bitnet.train.config import RunConfig, TrainConfig
from bitnet.train.experiment import Shown

HEADLINE = ("bits_per_byte",)
PROMPT_TOKENS = (6, 12, 20, 28, 36)  # several beginnings of one document, since small corpora hold few out
NEW_TOKENS = 64
JUDGED_ROWS = 16  # windows of a batch when the held-out loss is measured
KNOWN_TOKENS = 20_000_000  # training tokens whose words count as known; more would find names and misprints


class Prompt(NamedTuple):
    """A beginning of a held-out document, and how it went on."""

    ids: list[int]
    rest: list[int]


class TextTask:
    """Real text with its judge. An experiment derives from it to give its prompts. Opening it makes what is
    missing of tokenizer and shards.
    """

    prompts: Sequence[str] = ()
    end_mark = None

    def __init__(self, config: RunConfig) -> None:
        """Raises BitnetError where the data cannot be had, or would be repeated more than was allowed."""
        self.config, self.data = config, text_data(config)
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

    def judge(self, model: Decoder, limit: int | None = None) -> dict[str, float]:
        """Numbers about the writing; without a limit also the loss over judged_sequences windows."""
        prompts = self.held_out_prompts[:limit]
        beginnings = [self.tokenizer.decode(prompt.ids) for prompt in prompts]
        sampled, greedy = (self._continued(model, prompts, mode) for mode in ("typical", "greedy"))
        metrics = writing_metrics(sampled, self.known_words, prompts=beginnings)
        metrics |= shares({"greedy_looping": [looping(text) for text in greedy]})
        if limit is None:
            metrics |= held_out_loss(model, self._windows(self.data.judged_sequences), self.tokenizer)
        return metrics

    def show(self, model: Decoder, count: int) -> list[Shown]:
        """A few held-out beginnings with what the model makes of them, sampled; there is no right answer."""
        prompts = self.held_out_prompts[:count]
        texts = self._continued(model, prompts, "typical")
        return [
            Shown(self.tokenizer.decode(prompt.ids), text, None)
            for prompt, text in zip(prompts, texts, strict=True)
        ]

    def _continued(self, model: Decoder, prompts: Sequence[Prompt], mode: Mode) -> list[str]:
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
