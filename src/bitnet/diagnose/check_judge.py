"""Does the experiment's judge say what a model can do? Suspect: evaluation.

A model that never trained must not pass; one that has the held-out examples by heart must; and one that is
wrong in its last character only, that never ends or ends too early must not. Where text is judged, a model
that repeats itself is called looping.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from bitnet.data.stream import Batch
from bitnet.diagnose.check_marks import before_answers
from bitnet.diagnose.finding import STRONG, Check, Part
from bitnet.diagnose.ngrams import examples, rows_of
from bitnet.diagnose.subject import Subject
from bitnet.nn.transformer import BitNetTransformer

JUDGE = Part(
    suspect="evaluation", source="the task's own interface", explained_by=frozenset({"data", "decoding"})
)
JUDGED = 6
Text = tuple[int, ...]
EVALUATION = Part("evaluation", "the task's own interface", weight=STRONG)


def judging(subject: Subject) -> Iterator[Check]:
    """All checks of this file."""
    frozen = list(subject.task.frozen_evaluation())
    yield from judged(subject)
    yield from strictness(subject, frozen)
    yield from repetition(subject, frozen)


def judged(subject: Subject) -> Iterator[Check]:
    """Shares are shares, the count is kept, and a model that never trained does not pass."""
    fresh = subject.model if subject.fresh else subject.new_model(subject.config)
    metrics, again = (subject.task.judge(fresh, JUDGED) for _ in range(2))
    counts = {name: value for name, value in metrics.items() if name.endswith("_cases")}
    shares = {
        name: metrics[name.removesuffix("_cases")]
        for name in counts
        if name.removesuffix("_cases") in metrics
    }
    sound = (
        bool(counts)
        and all(math.isfinite(value) for value in metrics.values())
        and all(value >= 0 for value in shares.values())
    )
    same = metrics == again
    yield EVALUATION(
        "judge counts its cases and repeats",
        "the judge's figures are not finite, not counted, or change from call to call",
    ).holds(
        sound and same,
        f"{len(counts)} counted, repeats: {same}",
        "every figure with its cases, twice the same",
    )
    known = [criterion for criterion in subject.criteria if criterion.metric in metrics]
    passed = [str(criterion) for criterion in known if criterion.met(metrics[criterion.metric])]
    yield EVALUATION(
        "an untrained model does not pass",
        "the judge is satisfied with a model that knows nothing",
        source="weights that never trained",
    ).holds(not known or len(passed) < len(known), passed, "not all criteria met")


class _History:
    """What `Oracle` keeps instead of keys and values: the ids themselves."""

    def __init__(self, rows: int, capacity: int) -> None:
        self.rows, self.capacity = rows, capacity
        self.ids: list[list[int]] = [[] for _ in range(rows)]

    @property
    def length(self) -> int:
        return len(self.ids[0])


class Oracle(torch.nn.Module):
    """A model that has the given texts by heart: after a beginning of one of them it is sure of the next
    token.
    """

    def __init__(self, model: BitNetTransformer, texts: Iterable[Text], otherwise: int = 0) -> None:
        """otherwise: what it says after any other text."""
        super().__init__()
        self.otherwise = otherwise
        self.config, self.final_norm = model.config, model.final_norm
        self.next = {text[:cut]: text[cut] for text in texts for cut in range(1, len(text))}

    def new_cache(self, rows: int, capacity: int | None = None) -> _History:
        return _History(rows, min(capacity or self.config.max_seq_length, self.config.max_seq_length))

    def forward(
        self, input_ids: Tensor, cache: _History | None = None, segments: Tensor | None = None
    ) -> Tensor:
        """Logits (B, T, V): sure of the known next token, whether the texts come whole or piece by piece."""
        history = _History(len(input_ids), 0) if cache is None else cache
        logits = torch.zeros(*input_ids.shape, self.config.vocab_size, device=input_ids.device)
        for row, new in enumerate(input_ids.tolist()):
            for place, token in enumerate(new):
                history.ids[row].append(token)
                logits[row, place, self.next.get(tuple(history.ids[row]), self.otherwise)] = 20.0
        return logits


def judged_as(subject: Subject, model: Oracle, metric: str) -> float | None:
    """A metric of a stand-in; None where the judge asks for more of a model than a stand-in has, which is no
    fault of the judge.
    """
    stand_in: Any = model
    try:
        return float(subject.task.judge(stand_in, JUDGED)[metric])
    except (AttributeError, TypeError):
        return None


def spoiled(text: Text, end: int, other: Callable[[int], int]) -> dict[str, Text]:
    """The same example, wrong in one way each. other: another id that occurs in such texts."""
    *body, last, mark = text
    assert mark == end
    return {
        "the last character is another": (*body, other(last), mark),
        "the end mark does not come": (*body, last, other(end), other(end)),
        "a character follows the answer": (*body, last, other(last), mark),
    }


def answer_start(subject: Subject, text: Text) -> int:
    """Where the answer begins: after the last place that looks like the end of the task's prompts; 0 where
    they have none in common.
    """
    before = tuple(before_answers(subject))
    places = [
        end for end in range(len(before), len(text) - 1) if before and text[end - len(before) : end] == before
    ]
    return places[-1] if places else 0


def strictness(subject: Subject, frozen: Sequence[Batch]) -> Iterator[Check]:
    """Where success is an exact match: right answers pass, and answers that are wrong in one character count
    as wrong.
    """
    wanted = [criterion for criterion in subject.criteria if criterion.metric == "exact_match"]
    if not wanted or subject.task.end_mark is None:
        return
    tokenizer = subject.task.tokenizer
    end = tokenizer.encode(subject.task.end_mark)[0]
    found = examples([row for batch in frozen for row in rows_of(batch, tokenizer.pad_id)], end)
    known = {text for text in found if len(text) >= 4}
    share = judged_as(subject, Oracle(subject.model, known), "exact_match")
    if share is None:
        return
    yield JUDGE(
        "right answers pass",
        "the judge does not recognise right answers",
        source="a stand-in for the model that has the held-out examples by heart",
    ).holds(wanted[0].met(share), share, str(wanted[0]))
    used = sorted({token for text in known for token in text[answer_start(subject, text) or -3 : -1]})
    if len(used) < 2:
        return
    wrong: dict[str, set[Text]] = {}
    for text in known:
        for way, changed in spoiled(
            text, end, lambda token: next(one for one in used if one != token)
        ).items():
            wrong.setdefault(way, set()).add(changed)
    for token in used:  # a sign before a number, for one
        way = f"{tokenizer.decode([token])!r} stands before the answer"
        wrong[way] = {
            (*text[:start], token, *text[start:]) for text in known if (start := answer_start(subject, text))
        }
    shares = {
        way: judged_as(subject, Oracle(subject.model, texts), "exact_match") or 0.0
        for way, texts in wrong.items()
    }
    yield JUDGE(
        "wrong answers do not pass",
        "and the answer counts as right",
        source="stand-ins that are wrong in one character",
    ).below(shares, 0.0, "share that counts as right")


def repetition(subject: Subject, frozen: Sequence[Batch]) -> Iterator[Check]:
    """Where loops are judged: a model that always says the same is looping."""
    if not any(criterion.metric == "greedy_looping" for criterion in subject.criteria):
        return
    scored = torch.cat([batch.targets[batch.loss_mask] for batch in frozen])
    usual = next(
        (
            token
            for token in torch.bincount(scored).argsort(descending=True).tolist()
            if _is_word(subject, token)
        ),
        None,
    )
    if usual is None:
        return
    found = judged_as(subject, Oracle(subject.model, (), otherwise=usual), "greedy_looping")
    if found is None:
        return
    yield JUDGE("repetition is called looping", "loops are not noticed", weight=STRONG).holds(
        found == 1.0, found, "1.0 of the texts of a model that says one word for ever"
    )


def _is_word(subject: Subject, token: int) -> bool:
    """Whether a token by itself is a word with the space before it, so that saying it again is saying a word
    again.
    """
    text = subject.task.tokenizer.decode([token])
    return text[:1] == " " and text[1:].isalpha()
