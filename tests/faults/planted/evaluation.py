"""Faults of the held-out data and of the judges."""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import Any

import numpy as np
import torch

from bitnet.corpus import holdout
from bitnet.evaluate import answers, loss
from bitnet.experiments import arithmetic
from bitnet.experiments.arithmetic import ArithmeticTask
from bitnet.nn.transformer import BitNetTransformer
from bitnet.train.observe import measurements
from planted.fault import ADAMW, by_settings, fault


@fault("evaluation on training data", "evaluation", "not trained on")
def _() -> None:
    ArithmeticTask.frozen_evaluation = lambda self: [self.source.rows(np.arange(100, 164))]  # type: ignore[method-assign]


@fault("noise at evaluation", "evaluation", "evaluat")
def _() -> None:
    original = BitNetTransformer.hidden

    def hidden(self: Any, *words: Any) -> Any:
        out = original(self, *words)
        return out if self.training else out + 0.3 * torch.randn_like(out)

    BitNetTransformer.hidden = hidden  # type: ignore[method-assign]


@fault("held-out loss over padding", "evaluation", "held-out loss")
def _() -> None:
    original = loss.held_out_loss
    loss.held_out_loss = lambda model, batches, tokenizer: original(
        model, [b._replace(loss_mask=torch.ones_like(b.loss_mask)) for b in batches], tokenizer
    )


@fault("a judge that is always satisfied", "evaluation", "untrained model")
def _() -> None:
    original = arithmetic.exact_match
    arithmetic.exact_match = lambda *words: {
        k: v if k.endswith("_cases") else 1.0 for k, v in original(*words).items()
    }


@fault("copies with other white space trained on", "evaluation", "copies of a document")
def _() -> None:
    holdout.content_hash = lambda text: hashlib.sha256(text.encode()).digest()[:16]


@fault("the end mark is not judged", "evaluation", "wrong answers")
def _() -> None:
    original = answers.answer_all
    answers.answer_all = lambda model, tokenizer, cases: [
        case.answer if answer.startswith(case.answer.rstrip()) else answer
        for case, answer in zip(cases, original(model, tokenizer, cases), strict=True)
    ]


@fault("means of means at evaluation", "evaluation", "mean over scored tokens")
def _() -> None:
    original = loss.held_out_loss

    def mean_of_means(model: Any, batches: Any, tokenizer: Any) -> Any:
        each = [original(model, [batch], tokenizer) for batch in batches]
        return {
            **original(model, batches, tokenizer),
            "nats_per_token": sum(one["nats_per_token"] for one in each) / len(each),
        }

    loss.held_out_loss = mean_of_means


@fault("probes count zeros as ones", "evaluation", "probes")
def _() -> None:
    original = measurements.ternary_statistics

    def counted(*words: Any) -> Any:
        row = original(*words)
        return {**row, **{key: row[key] + 0.01 for key in row if key.endswith("_pos1_pct")}}

    measurements.ternary_statistics = counted


@fault("only sums are evaluated", "evaluation", "usual tokens")
def _() -> None:
    original = arithmetic.ArithmeticTask.held_out_cases.func
    sums: Any = cached_property(lambda self: [case for case in original(self) if case.kind == "add"])
    sums.__set_name__(arithmetic.ArithmeticTask, "held_out_cases")
    arithmetic.ArithmeticTask.held_out_cases = sums


@fault("the sign is not judged", "evaluation", "wrong answers")
def _() -> None:
    original = answers.answer_all
    answers.answer_all = lambda model, tokenizer, cases: [
        case.answer if answer.lstrip("-") == case.answer.lstrip("-") else answer
        for case, answer in zip(cases, original(model, tokenizer, cases), strict=True)
    ]


by_settings(
    "evaluated only at the end", "evaluation", "evaluations during", "--train.eval-every 24414", base=ADAMW
)
