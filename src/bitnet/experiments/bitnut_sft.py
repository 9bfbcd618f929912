"""BitNut fine-tuned: a run of running text learns to answer in a voice.

    bitnet train bitnut_sft --from RUN --data DIR

The same loop with other data and start weights: conversations of `bitnet voice answers` in the template of
text/chat.py, loss on the answers and their ends only, packed without leaking, and a share of windows of the
text that the run was trained on, to limit forgetting. Model, tokenizer and that text come from RUN; the
conversations' voice gives the name before the answers.

The 2B4T report (arXiv:2504.12285, section 3.2) advises a summed loss, a higher rate and more epochs than for
full precision. `loss_reduction: sum` is the first (train/objective.py says what it changes; `reference` has
it), `peak_lr` and `total_steps` the others.

Judged on topics that fine-tuning never saw, by a program: do answers end by themselves, are they in the voice
(voice/score.py), do they mention the topic, what is lost of the text before (`forgetting`, nats per token
against the start weights), and the loss on held-out answers with the start weights beside it (`nats_before`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from bitnet.data.conversation_rows import ConversationRows, single_batches
from bitnet.data.conversations import Conversation, chained, encoded, read_conversations
from bitnet.data.shards import Shards
from bitnet.data.stream import Batch, RowSource
from bitnet.data.windows import WindowRows, held_out_batches
from bitnet.engine.choose import Engine
from bitnet.errors import ConfigError, DataError
from bitnet.evaluate.answers import shares
from bitnet.evaluate.continuations import continued_ids
from bitnet.evaluate.loss import held_out_loss
from bitnet.experiments.bitnut import QUICK as BASE_QUICK
from bitnet.experiments.bitnut import REFERENCE as BASE_REFERENCE
from bitnet.experiments.conversation_data import ConversationData
from bitnet.experiments.recipes import QUICK_MUON
from bitnet.generate.decoder import Decoder
from bitnet.nn.transformer import BitNetTransformer
from bitnet.text.chat import question, question_ids
from bitnet.text.tokenizer import load_tokenizer
from bitnet.train.config import RunConfig, TrainConfig
from bitnet.train.experiment import Criterion, Experiment, Shown, Variant, Watch
from bitnet.trained_model import load
from bitnet.voice.score import in_voice
from bitnet.voice.topics import mentions
from bitnet.voice.voices import find_voice

T = TypeVar("T")
ROWS = 16  # rows of a batch when a loss is measured
FORGETTING_WINDOWS = 200


QUICK = RunConfig(
    model=BASE_QUICK.model,
    train=dataclasses.replace(
        QUICK_MUON, total_steps=300, peak_lr=0.00075, muon_lr=0.005, eval_cases=8, probe_every=200
    ),
    data=ConversationData(dataset="conversations", other_share=0.5),
)
REFERENCE = RunConfig(
    model=BASE_REFERENCE.model,
    train=TrainConfig(
        seq_len=1_024,
        batch_size=16,
        total_steps=600,
        warmup_steps=30,
        schedule="linear",
        peak_lr=0.0005,
        final_lr=0.0,
        stage1_wd=0.0,
        loss_reduction="sum",
        log_every=10,
        eval_every=100,
        eval_cases=8,
        sample_every=200,
        probe_every=200,
        checkpoint_every=200,
    ),
    data=ConversationData(dataset="conversations"),
)
TALKS = (
    Criterion("answers_ended", at_least=0.95),
    Criterion("in_voice", at_least=0.90),
    Criterion("forgetting", at_most=0.15),
)


def ready(config: RunConfig, watch: Watch | None) -> str:
    """Nothing is made. Returns the folder of the text that the base run was trained on."""
    assert isinstance(config.data, ConversationData)
    return config.data.other


class ConversationTask:
    """Conversations in a voice with their judge."""

    end_mark = None

    def __init__(self, config: RunConfig) -> None:
        """Raises BitnetError where the run or the conversations are missing or do not fit each other."""
        assert isinstance(config.data, ConversationData)
        self.config, self.data = config, config.data
        if config.train.start_from is None or not self.data.conversations:
            raise ConfigError(
                "fine-tuning needs a run and conversations, as in: bitnet train bitnut_sft --from RUN --data "
                "DIR"
            )
        self.voice = find_voice(self.data.voice)
        self.tokenizer = load_tokenizer(Path(self.data.tokenizer))
        if self.tokenizer.vocab_size > config.model.vocab_size:
            raise DataError(
                f"the tokenizer {self.data.tokenizer} has {self.tokenizer.vocab_size:,} entries, the model "
                f"{config.model.vocab_size:,}; "
                "fine-tune with the tokenizer of the run that it begins from"
            )
        self.found = read_conversations(Path(self.data.conversations))
        if not self.found.held_out:
            raise DataError(
                f"{self.found.name} holds no topic out, so that nothing can be judged; make it from more "
                "topics"
            )
        self.prompts = tuple(
            question(one.turns[0].human, self.data.speaker) for one in self.found.held_out[:5]
        )
        self.source = self._rows()

    def _rows(self) -> RowSource:
        train, data = self.config.train, self.data
        windows = (
            WindowRows(self.other, seq_len=train.seq_len, seed=train.seed)
            if self.other and data.other_share
            else None
        )
        conversations = encoded(chained(self.found.train, data.chained_share), self.tokenizer, data.speaker)
        return ConversationRows(
            conversations,
            seq_len=train.seq_len,
            seed=train.seed,
            pad_id=self.tokenizer.pad_id,
            name=self.found.name,
            other=windows,
            other_share=data.other_share if windows else 0.0,
        )

    @cached_property
    def other(self) -> Shards | None:
        """The text that the run was trained on. Raises DataError where it was made with another tokenizer, or
        altered.
        """
        if not self.data.other:
            return None
        shards = Shards.open(Path(self.data.other), self.tokenizer)
        shards.verify(self.tokenizer.vocab_size)
        return shards

    def frozen_evaluation(self) -> list[Batch]:
        """Held-out conversations, one a row."""
        chosen = evenly(self.found.held_out, self.data.eval_conversations)
        parts = encoded(chosen, self.tokenizer, self.data.speaker)
        return single_batches(
            parts, seq_len=self.config.train.seq_len, batch_size=ROWS, pad_id=self.tokenizer.pad_id
        )

    def judge(self, model: Decoder, limit: int | None = None) -> dict[str, float]:
        """How it answers held-out prompts; without a limit also losses, with those of the start weights
        beside them.
        """
        asked = evenly(
            self.found.held_out,
            self.data.judged_prompts if limit is None else min(limit, self.data.judged_prompts),
        )
        answers, ended = self._answers(model, asked)
        metrics = shares(
            {
                "answers_ended": ended,
                "in_voice": [in_voice(answer, self.voice) for answer in answers],
                "mention_topic": [
                    bool(one.topic) and mentions(answer, one.topic)
                    for one, answer in zip(asked, answers, strict=True)
                ],
                "distinct_answers": [answer not in answers[:place] for place, answer in enumerate(answers)],
            }
        )
        return metrics if limit is not None else metrics | self._losses(model)

    def _losses(self, model: Decoder) -> dict[str, float]:
        """forgetting: nats per token on the text before, against the start weights; nats_before: theirs on
        held-out answers.
        """
        assert self.config.train.start_from is not None
        # Both by one engine, so that the difference is of the weights and not of the last rounding.
        engine: Engine = "torch" if type(model) is BitNetTransformer else "auto"
        base = load(self.config.train.start_from, device=model.device, engine=engine).model
        before = held_out_loss(base, self.frozen_evaluation(), self.tokenizer)["nats_per_token"]
        if self.other is None:
            return {"nats_before": before}
        windows = held_out_batches(
            self.other,
            seq_len=model.config.max_seq_length,
            batch_size=ROWS,
            max_windows=FORGETTING_WINDOWS,
            pad_id=self.tokenizer.pad_id,
        )
        now, then = (held_out_loss(one, windows, self.tokenizer)["nats_per_token"] for one in (model, base))
        return {"nats_before": before, "text_nats_before": then, "text_nats": now, "forgetting": now - then}

    def show(self, model: Decoder, count: int) -> list[Shown]:
        """A few held-out prompts with the model's answers."""
        asked = evenly(self.found.held_out, count)
        return [
            Shown(one.turns[0].human, answer, None)
            for one, answer in zip(asked, self._answers(model, asked)[0], strict=True)
        ]

    def _answers(self, model: Decoder, asked: Sequence[Conversation]) -> tuple[list[str], list[bool]]:
        """Sampled answers to the first question of each, and whether they ended by themselves."""
        prompts = [question_ids(one.turns[0].human, self.tokenizer, self.data.speaker) for one in asked]
        room = model.config.max_seq_length - max(len(prompt) for prompt in prompts)
        ids = continued_ids(
            model,
            prompts,
            stop_id=self.tokenizer.eos_id,
            mode="typical",
            max_new_tokens=max(min(self.data.answer_tokens, room), 1),
        )
        ended = [row[-1:] == [self.tokenizer.eos_id] for row in ids]
        return [self.tokenizer.decode(row).strip() for row in ids], ended


def evenly(found: Sequence[T], count: int) -> list[T]:
    """At most `count` of them, spread over all, always the same."""
    taken = min(count, len(found))
    return [found[place * len(found) // taken] for place in range(taken)]


experiment = Experiment(
    name="bitnut_sft",
    label="133M",
    about="fine-tuning: a run learns to answer in a voice (needs --from RUN --data DIR)",
    variants={
        "quick": Variant(QUICK, TALKS, "minutes on two CPU cores, from the quick bitnut"),
        "reference": Variant(REFERENCE, TALKS, "from the 133M model"),
    },
    open=ConversationTask,
    starts_from_a_run=True,
    ready=ready,
)
