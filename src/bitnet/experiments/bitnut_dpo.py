"""BitNut by preference: a fine-tuned run learns to prefer answers in the voice to plain ones.

    bitnet voice answers --prompts DIR --pairs --out PAIRS
    bitnet train bitnut_dpo --from SFT_RUN --data PAIRS

Direct preference optimisation (arXiv:2305.18290; train/objective.py has the loss) with beta 0.1 and a low
rate, as the 2B4T report does (arXiv:2504.12285, section 3.3: two epochs, rate 2e-7, beta 0.1, for 2B
parameters). The chosen answer of a pair is in the voice, the rejected one answers the same prompt plainly.
The weights that the run begins with are the reference. The pairs are easily told apart: at ten times the rate
the margin grows to a hundred nats within 60 updates, and the sentences fall apart (docs/log.md).

It is judged like fine-tuning (bitnut_sft.py), on the same held-out prompts, so that the two verdicts can be
compared. Here `forgetting` counts from the fine-tuned run. `preferred` is the share of held-out pairs whose
chosen answer gained more than the rejected one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from bitnet.data.preferences import Pair, PairRows, encoded_pairs, read_pairs
from bitnet.data.stream import Batch, RowSource
from bitnet.errors import DataError
from bitnet.evaluate.answers import shares
from bitnet.experiments.bitnut_sft import QUICK as SFT_QUICK
from bitnet.experiments.bitnut_sft import REFERENCE as SFT_REFERENCE
from bitnet.experiments.bitnut_sft import ROWS, TALKS, ConversationTask, evenly, ready
from bitnet.experiments.conversation_data import ConversationData
from bitnet.generate.decoder import Decoder
from bitnet.train.experiment import Criterion, Experiment, Variant
from bitnet.train.objective import margins, row_log_probabilities
from bitnet.trained_model import load


@dataclass(frozen=True, kw_only=True)
class PreferenceData(ConversationData):
    """Pairs beside conversations: a folder that `bitnet voice answers --pairs` wrote."""

    other_share: float = 0.0
    judged_pairs: int = 200
    """Held-out pairs that `preferred` is measured on."""


QUICK = dataclasses.replace(
    SFT_QUICK,
    train=dataclasses.replace(
        SFT_QUICK.train.with_total_steps(40),
        objective="preference",
        seq_len=160,
        optimizer="adamw",
        peak_lr=0.000005,
        warmup_steps=4,
        log_every=5,
        eval_every=20,
        sample_every=40,
        probe_every=20,
        checkpoint_every=20,
    ),
    data=PreferenceData(dataset="pairs"),
)
REFERENCE = dataclasses.replace(
    SFT_REFERENCE,
    train=dataclasses.replace(
        SFT_REFERENCE.train.with_total_steps(400),
        objective="preference",
        seq_len=512,
        peak_lr=0.00002,
        warmup_steps=20,
    ),
    data=PreferenceData(dataset="pairs"),
)
PREFERS = (*TALKS, Criterion("preferred", at_least=0.95))


class PreferenceTask(ConversationTask):
    """Pairs with the judge of fine-tuning."""

    def _rows(self) -> RowSource:
        path = Path(self.data.conversations)
        if not path.is_dir():
            raise DataError(
                f"{path} is a file; preferences need the folder that `bitnet voice answers --pairs` wrote"
            )
        self.pairs = read_pairs(path)
        if not self.pairs.held_out:
            raise DataError(
                f"{self.pairs.name} holds no pair out, so that nothing can be judged; make it from more "
                "topics"
            )
        return self._pair_rows(self.pairs.train)

    def _pair_rows(self, pairs: Sequence[Pair]) -> PairRows:
        train = self.config.train
        return PairRows(
            encoded_pairs(pairs, self.tokenizer, self.data.speaker),
            seq_len=train.seq_len,
            seed=train.seed,
            pad_id=self.tokenizer.pad_id,
            name=self.pairs.name,
            reference=self._reference,
        )

    @cached_property
    def _start(self) -> Decoder:
        """The model with the weights that the run begins with, which stay as they are."""
        assert self.config.train.start_from is not None
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return load(self.config.train.start_from, device=device, engine="torch").model

    @torch.no_grad()
    def _reference(self, batch: Batch) -> Tensor:
        on_device = batch.to(self._start.device)
        return row_log_probabilities(self._start(on_device.input_ids), on_device)

    def judge(self, model: Decoder, limit: int | None = None) -> dict[str, float]:
        """The metrics of fine-tuning, and what is preferred."""
        assert isinstance(self.data, PreferenceData)
        wanted = self.data.judged_pairs if limit is None else min(limit, self.data.judged_pairs)
        batches = self._pair_rows(evenly(self.pairs.held_out, wanted)).in_order(ROWS)
        found = torch.cat([self._margins(model, batch) for batch in batches])
        preferred = shares({"preferred": (found > 0).tolist()})
        return {**super().judge(model, limit), **preferred, "margin_nats": float(found.double().mean())}

    @torch.no_grad()
    def _margins(self, model: Decoder, batch: Batch) -> Tensor:
        on_device = batch.to(model.device)
        return margins(model(on_device.input_ids), on_device).cpu()


experiment = Experiment(
    name="bitnut_dpo",
    label="133M",
    about="preference optimisation: in the voice rather than plainly (needs --from RUN --data DIR)",
    variants={
        "quick": Variant(QUICK, PREFERS, "minutes on two CPU cores, from the quick bitnut_sft"),
        "reference": Variant(REFERENCE, PREFERS, "from the fine-tuned 133M model"),
    },
    open=PreferenceTask,
    starts_from_a_run=True,
    ready=ready,
)
