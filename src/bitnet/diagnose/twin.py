"""Small stand-ins for the examined model in which every mechanism acts, so that none of them can be wrong
without being seen.

The examined model may have one key/value head, no weight decay, no sub-norm, a clipping limit that is never
reached, and a fresh model has norm weights of one and a loss of ln(V) for whatever it is asked. Each twin is
made, trained and updated by the same functions as the examined model, with other settings: grouped heads, an
epsilon that counts, norm weights that differ, losses that differ from token to token, micro-batches with
unequal numbers of scored targets, decay that is switched off, and each objective. Not here: what is asked of
them (check_twin.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from bitnet.data.stream import Batch
from bitnet.diagnose.subject import Subject, new_model
from bitnet.diagnose.watch import PLAIN
from bitnet.nn.transformer import BitNetTransformer
from bitnet.train.experiment import Task

VOCABULARY, COLUMNS = 61, 22
SHORTEST, LONGEST = 160, 1024  # of a twin's positions
EPSILON = 0.02  # large beside the mean square of some inputs, so that its place in the formula matters
SPREAD = 1.5  # standard deviation of a twin's logits, about
STEPS: dict[str, Any] = {
    "total_steps": 12,
    "warmup_steps": 3,
    "stage1_end": 6,
    "seq_len": COLUMNS,
    "grad_accumulation_steps": 3,
    "start_from": None,
    "precision": "fp32",
}
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "num_layers": 2,
    "ffn_hidden_size": 72,
    "norm_eps": EPSILON,
}


@dataclass(frozen=True)
class Kind:
    """One twin: how its shape and its settings differ from the examined model's."""

    name: str
    shape: Mapping[str, Any]
    settings: Mapping[str, Any]
    pairs: bool = False
    """Whether its rows are pairs for a preference."""
    segments: bool = False
    """Whether its rows hold several texts."""


KINDS = (
    Kind(
        "AdamW",
        {"num_heads": 6, "num_kv_heads": 2, "sub_norm": True}
        | {"embeddings_tied": False, "activation": "relu2"},
        PLAIN
        | {"optimizer": "adamw", "schedule": "two_stage", "batch_size": 2, "grad_clip_norm": 0.25}
        | {"peak_lr": 0.002, "stage2_lr": 0.001, "final_lr": 0.0001, "stage1_wd": 0.2, "stage2_wd": 0.05}
        | {"stage1_unlikelihood": 1.5, "stage2_unlikelihood": 0.5, "unlikelihood_tokens": 4},
        segments=True,
    ),
    Kind(
        "Muon",
        {"num_heads": 6, "num_kv_heads": 3, "embeddings_tied": True, "activation": "silu", "sub_norm": False},
        PLAIN
        | {"optimizer": "muon", "schedule": "warm_down", "batch_size": 2, "grad_clip_norm": 5.0}
        | {"peak_lr": 0.003, "muon_lr": 0.02, "final_lr": 0.0, "stage1_wd": 0.2, "stage2_wd": 0.0}
        | {"loss_reduction": "sum"},
    ),
    Kind(
        "preference",
        {"num_heads": 6, "num_kv_heads": 2, "embeddings_tied": True, "activation": "silu", "sub_norm": True},
        PLAIN
        | {"optimizer": "adamw", "schedule": "cosine", "batch_size": 4, "grad_clip_norm": 1.0}
        | {"peak_lr": 0.001, "final_lr": 0.0, "stage1_wd": 0.1, "stage2_wd": 0.0}
        | {"objective": "preference", "preference_beta": 0.3},
        pairs=True,
    ),
)


class LivelyRows:
    """Random rows with random masks, few targets scored in some micro-batches and many in others; a function
    of the number.
    """

    def __init__(self, kind: Kind) -> None:
        self.kind = kind

    def rows(self, numbers: NDArray[np.int64]) -> Batch:
        """The rows with these numbers."""
        made = [self._row(int(number)) for number in numbers]
        ids, targets, mask, segments = (torch.from_numpy(np.stack(part)) for part in zip(*made, strict=True))
        batch = Batch(ids, targets, mask, segments if self.kind.segments else None)
        if not self.kind.pairs:
            return batch
        start = [-3.0 * float(row.sum()) - float(n % 5) for row, n in zip(mask, numbers, strict=True)]
        return batch._replace(reference=torch.tensor(start))

    def _row(self, number: int) -> tuple[NDArray[Any], ...]:
        generator = np.random.default_rng(number)
        tokens = generator.integers(VOCABULARY, size=COLUMNS + 1)
        tokens[generator.integers(1, COLUMNS, size=4)] = tokens[0]  # repeated tokens, for unlikelihood
        mask = generator.random(COLUMNS) < (0.9, 0.15, 0.5)[number // 2 % 3]
        mask[-1] = True
        segments = np.sort(generator.integers(3, size=COLUMNS))
        return tokens[:-1], tokens[1:], mask, segments

    def epochs(self, rows: int) -> float:
        """Rows never repeat."""
        return rows * 1e-9

    def fingerprint(self) -> dict[str, Any]:
        """Nothing is written about them."""
        return {}


@dataclass(frozen=True)
class _TwinTask:
    """The examined task with other rows."""

    inner: Task
    source: LivelyRows

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def twin_of(subject: Subject, kind: Kind) -> Subject:
    """The examined subject with a small model of this kind, its settings and its rows."""
    length = min(max(subject.config.max_seq_length, SHORTEST), LONGEST)
    config = dataclasses.replace(subject.config, **{**SHAPE, "max_seq_length": length, **kind.shape})
    train = dataclasses.replace(subject.settings.train, **{**STEPS, **kind.settings})
    return dataclasses.replace(
        subject,
        settings=dataclasses.replace(subject.settings, model=config, train=train),
        task=cast(Task, _TwinTask(subject.task, LivelyRows(kind))),
        model=lively(new_model(config, train, subject.device, subject.before)),
    )


@torch.no_grad()
def lively(model: BitNetTransformer) -> BitNetTransformer:
    """The model with weights, always the same, in which nothing is near its beginning; in place."""
    config = model.config
    generator = torch.Generator().manual_seed(2402)
    for name, weight in model.named_parameters():
        values = torch.randn(weight.shape, generator=generator)
        if weight.dim() == 1:
            values = 1 + 0.3 * values.clamp(-2, 2)
        elif name.startswith(("token_embeddings", "lm_head")):
            values = values * SPREAD / config.hidden_size**0.5
        elif name.endswith("qkv_proj.weight"):
            values = values * 2.0 / config.hidden_size**0.5
            values[: config.head_dim] *= 2.0  # the matrices of one layer have different scales
        else:
            values = values * (0.05 if name.endswith("down.weight") else 0.1)
        weight.copy_(values)
    return model
