"""Does the experiment's judge say what a model can do? Suspect: evaluation.

A model that never trained must not pass. One that has the held-out examples by heart must pass, and must not
when it is wrong in its last character only, never ends, or ends too early. Where text is judged, a model that
repeats itself is called looping.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bitnet.data.stream import Batch
from bitnet.diagnose.check_marks import before_answers, end_id
from bitnet.diagnose.finding import STRONG, Check, Part
from bitnet.diagnose.ngrams import examples, rows_in
from bitnet.diagnose.subject import Subject
from bitnet.nn.row_lengths import RowLengths
from bitnet.nn.transformer import BitNetTransformer

JUDGE = Part("evaluation", "the task's own interface", weight=STRONG)
ANSWERS = Part(
    "evaluation", "a stand-in for the model that gives known answers", explained_by={"data", "decoding"}
)
JUDGED = 6  # cases that are judged each time
Text = tuple[int, ...]


def judging(subject: Subject) -> Iterator[Check]:
    """All checks of this file."""
    frozen = list(subject.task.frozen_evaluation())
    yield from judged(subject)
    if subject.task.end_mark is not None:
        yield from strictness(subject, frozen)
    yield from repetition(subject, frozen)


def judged(subject: Subject) -> Iterator[Check]:
    """Shares are shares, the cases are counted, and a model that never trained does not pass."""
    fresh = subject.model if subject.fresh else subject.new_model(subject.config)
    metrics, again = (subject.task.judge(fresh, JUDGED) for _ in range(2))
    counted = [name.removesuffix("_cases") for name in metrics if name.endswith("_cases")]
    finite = all(math.isfinite(value) for value in metrics.values())
    sound = bool(counted) and finite and all(metrics.get(name, 0) >= 0 for name in counted)
    same = metrics == again
    yield JUDGE(
        "judge counts its cases and repeats",
        "the judge's figures are not finite, not counted, or change from call to call",
    ).holds(
        sound and same,
        f"{len(counted)} counted, repeats: {same}",
        "every figure with its cases, twice the same",
    )

    known = [criterion for criterion in subject.criteria if criterion.metric in metrics]
    passed = [str(criterion) for criterion in known if criterion.met(metrics[criterion.metric])]
    yield JUDGE(
        "an untrained model does not pass",
        "the judge is satisfied with a model that knows nothing",
        source="weights that never trained",
    ).holds(not known or len(passed) < len(known), passed, "not all criteria met")


class _History(RowLengths):
    """What `Oracle` keeps instead of keys and values: the ids themselves."""

    def __init__(self, oracle: Oracle, count: int, capacity: int) -> None:
        super().__init__(count, capacity)
        self.oracle = oracle
        self.ids: list[list[int]] = [[] for _ in range(count)]

    def read(self, texts: Mapping[int, Sequence[int]]) -> Tensor:
        """Logits (n, V) after the last id of each text."""
        chosen, counts = self.room_for(texts)
        for row, new in texts.items():
            self.ids[row] = self.ids[row][: self.lengths[row]] + list(new)
        self.lengths[chosen] += counts
        return torch.stack([self.oracle(torch.tensor([self.ids[row]]))[0, -1] for row in texts])


class Oracle(torch.nn.Module):
    """A stand-in for a model that has the given texts by heart: after a beginning of one of them it is sure
    of the next token.
    """

    def __init__(self, model: BitNetTransformer, texts: Iterable[Text], otherwise: int = 0) -> None:
        """otherwise: what it says after any other text."""
        super().__init__()
        self.otherwise = otherwise
        self.config, self.device = model.config, model.device
        self.next = {text[:cut]: text[cut] for text in texts for cut in range(1, len(text))}

    mixes_lengths = True

    def new_rows(self, count: int, capacity: int | None = None) -> _History:
        return _History(self, count, min(capacity or self.config.max_seq_length, self.config.max_seq_length))

    def forward(self, input_ids: Tensor, segments: Tensor | None = None) -> Tensor:
        """Logits (B, T, V): sure of the known next token."""
        logits = torch.zeros(*input_ids.shape, self.config.vocab_size, device=self.device)
        for row, ids in enumerate(input_ids.tolist()):
            for place in range(len(ids)):
                logits[row, place, self.next.get(tuple(ids[: place + 1]), self.otherwise)] = 20.0
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


def strictness(subject: Subject, frozen: Sequence[Batch]) -> Iterator[Check]:
    """Where success is an exact match: right answers pass, and answers that are wrong in one character do
    not.
    """
    tokenizer, end = subject.task.tokenizer, end_id(subject)
    known = {text for text in examples(rows_in(frozen, tokenizer.pad_id), end) if len(text) >= 4}
    wanted = next((criterion for criterion in subject.criteria if criterion.metric == "exact_match"), None)
    share = judged_as(subject, Oracle(subject.model, known), "exact_match") if wanted else None
    if wanted is None or share is None:
        return
    yield ANSWERS("right answers pass", "the judge does not recognise right answers").holds(
        wanted.met(share), share, str(wanted)
    )

    before = before_answers(subject)
    starts = {text: answer_start(text, before) for text in known}
    used = sorted({token for text in known for token in text[starts[text] or -3 : -1]})
    if len(used) < 2:
        return
    wrong = spoiled(known, end, used)
    for token in used:  # a sign before a number, for one
        wrong[f"{tokenizer.decode([token])!r} stands before the answer"] = {
            (*text[:start], token, *text[start:]) for text, start in starts.items() if start
        }
    shares = {
        way: judged_as(subject, Oracle(subject.model, texts), "exact_match") or 0.0
        for way, texts in wrong.items()
    }
    yield ANSWERS("wrong answers do not pass", "and the answer counts as right").below(
        shares, 0.0, "share that counts as right"
    )


def spoiled(texts: Iterable[Text], end: int, used: Sequence[int]) -> dict[str, set[Text]]:
    """The same examples, wrong in one way each. used: ids that occur in answers, two at least."""

    def other(token: int) -> int:
        return next(one for one in used if one != token)

    wrong: dict[str, set[Text]] = {}
    for *body, last, mark in texts:
        assert mark == end
        for way, changed in (
            ("the last character is another", (*body, other(last), mark)),
            ("the end mark does not come", (*body, last, other(end), other(end))),
            ("a character follows the answer", (*body, last, other(last), mark)),
        ):
            wrong.setdefault(way, set()).add(changed)
    return wrong


def answer_start(text: Text, before: Sequence[int]) -> int:
    """Where the answer begins: after the last place that looks like the end of the task's prompts. 0 where
    the prompts have no end in common.
    """
    mark, width = tuple(before), len(before)
    places = [end for end in range(width, len(text) - 1) if width and text[end - width : end] == mark]
    return places[-1] if places else 0


def repetition(subject: Subject, frozen: Sequence[Batch]) -> Iterator[Check]:
    """Where loops are judged: a model that always says the same word is looping."""
    if not any(criterion.metric == "greedy_looping" for criterion in subject.criteria):
        return
    scored = torch.cat([batch.targets[batch.loss_mask] for batch in frozen])
    often_first = torch.bincount(scored).argsort(descending=True).tolist()
    word = next((token for token in often_first if _is_word(subject, token)), None)
    if word is None:
        return
    found = judged_as(subject, Oracle(subject.model, (), otherwise=word), "greedy_looping")
    if found is not None:
        yield ANSWERS("repetition is called looping", "loops are not noticed", weight=STRONG).holds(
            found == 1.0, found, "1.0 of the texts of a model that says one word for ever"
        )


def _is_word(subject: Subject, token: int) -> bool:
    """Whether a token is a whole word with the space before it, so that saying it again repeats a word."""
    text = subject.task.tokenizer.decode([token])
    return text[:1] == " " and text[1:].isalpha()
