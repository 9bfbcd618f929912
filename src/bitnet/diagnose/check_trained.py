"""How a run went: its losses, and its figures against its criteria. Suspects: training and size.

Loss is S-shaped, so a run that is still going is not judged by its criteria. Not here: whether a fresh model
learns at all (check_learning.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bitnet.data.stream import Batch
from bitnet.diagnose.finding import HINT, STRONG, Check, Part
from bitnet.diagnose.ngrams import Counts, rows_of
from bitnet.diagnose.subject import Subject
from bitnet.files import read_json
from bitnet.run.layout import RunLayout
from bitnet.run.metrics import read_lines

UNIFORM = Part("quantization", "a uniform guess", weight=STRONG)
CURVE = Part("training", "loss curves are S-shaped, but not rising (recipes)", weight=STRONG, direct=False)
COUNTED = Part("training", "counted in the training rows", weight=STRONG, direct=False)
HELD_OUT = Part(
    "evaluation",
    "train and held-out rows are drawn alike (ours)",
    weight=HINT,
    explained_by=frozenset({"data"}),
)
GAP = Part("training", "generalisation gap (ours)", weight=HINT, direct=False)
SUCCESS = Part(
    "training",
    "the variant's own criteria; 20 tokens per parameter for text (arXiv:2203.15556)",
    weight=HINT,
    direct=False,
)
ENOUGH = 20  # tokens per parameter of text; updates of a curve


def trained(subject: Subject, training: Batch) -> Iterator[Check]:
    """A run's losses, its figures against its criteria, and what is most likely missing where they are not
    met. Nothing for a fresh model.
    """
    if subject.layout is None:
        return
    losses = recorded_losses(subject.layout, max(subject.step, 1))
    if not losses:
        return
    yield from curve(losses, math.log(subject.config.vocab_size))

    finished = subject.step >= int(subject.training["total_steps"])
    # The loss of a preference is no cross-entropy, and compares with none.
    if subject.training.get("objective") != "preference":
        yield from consistent(subject, subject.layout, losses)
        if finished:
            yield from against_counting(subject, training, losses)
    if finished:
        yield success(subject, measured(subject.layout, subject.step), losses)


def recorded_losses(layout: RunLayout, step: int) -> list[float]:
    """The training losses up to a step, as far as they are numbers."""
    rows = [row for row in read_lines(layout.scalars).rows if row["step"] <= step]
    return [float(row["loss"]) for row in rows if isinstance(row.get("loss"), float)]


def curve(losses: Sequence[float], uniform: float) -> Iterator[Check]:
    """The loss began near that of a uniform guess, fell, and did not end above where it had been."""
    sure = "the run began sure of wrong answers: its initialisation was broken"
    yield UNIFORM("recorded loss begins at ln(V)", sure).below(
        losses[0], uniform + 1.0, "nats/token at the first update"
    )
    if len(losses) < ENOUGH:
        return
    window = max(len(losses) // 20, 5)
    starts = range(0, len(losses) - window + 1, window)
    means = [float(np.mean(losses[begin : begin + window])) for begin in starts]
    risen = "training went well and then apart: the rate is too high, or the data changed"
    yield CURVE("loss ends where it was lowest", risen).below(
        means[-1] - min(means), max(0.5, 0.25 * min(means)), "nats above its lowest average"
    )


def consistent(subject: Subject, layout: RunLayout, losses: Sequence[float]) -> Iterator[Check]:
    """Training and held-out loss tell one story."""
    told = [
        row
        for row in read_lines(layout.evaluations).rows
        if row["step"] <= subject.step and isinstance(row.get("eval_loss"), float)
    ]
    if not told or read_json(layout.fingerprint).get("other_share"):
        # nothing to compare, or rows of another text are mixed in, which the held-out ones have none of
        return
    at = losses[: int(told[-1]["step"])]  # up to the update that was evaluated
    # a loss that still falls is ahead of its average
    recent = min(float(np.mean(at[-20:])), float(np.mean(at[-3:])))
    gap = float(told[-1]["eval_loss"]) - recent
    easy = "evaluation is easier than training: it sees training rows, or the answers"
    yield HELD_OUT("held-out loss is not far below the training loss", easy).at_least(
        gap, -max(0.3, 0.3 * recent), "nats above the training loss: held out is not easier"
    )

    train = subject.settings.train
    epochs = subject.task.source.epochs(train.batch_size * train.grad_accumulation_steps * subject.step)
    known = f"the training rows are learned by heart ({epochs:.1f} epochs): more data, or fewer updates"
    yield GAP("held-out loss follows the training loss", known).below(
        gap, max(1.0, recent), "nats above the training loss"
    )


def against_counting(subject: Subject, training: Batch, losses: Sequence[float]) -> Iterator[Check]:
    """A trained model knows more than someone who counted pairs of tokens."""
    if subject.task.end_mark is not None and float(training.loss_mask.float().mean()) < 0.5:
        return  # scored on answers only: their surprise is not that of the text
    rows = rows_of(training, subject.task.tokenizer.pad_id)
    cut = len(rows) * 3 // 4
    alone, pairs = Counts.of(rows[:cut], subject.config.vocab_size).surprise(rows[cut:])
    recent = float(np.mean(losses[-20:]))
    what = "the frequencies of tokens" if recent > 0.97 * alone else "pairs of tokens"
    yield COUNTED("loss below that of counting", f"the model knows no more than {what}").holds(
        recent < pairs, recent, f"< {pairs:.3f} nats/token by pairs of tokens ({alone:.3f} by single ones)"
    )


def success(subject: Subject, metrics: Mapping[str, Any], losses: Sequence[float]) -> Check:
    """A finished run against its criteria; if it fails, whether tokens or weights are missing."""
    known = [criterion for criterion in subject.criteria if criterion.metric in metrics]
    missed = [str(criterion) for criterion in known if not criterion.met(metrics[criterion.metric])]
    tokens = int(subject.training["tokens_per_step"]) * subject.step
    ratio = tokens / subject.config.total_params
    planned = tokens / subject.planned_tokens if subject.planned_tokens else 1.0

    small = flat(losses) and ratio >= ENOUGH
    state = "; the loss no longer falls: more weights" if small else ""
    state = state if flat(losses) else "; the loss still falls"
    detail = f"{', '.join(missed)} not met after {ratio:.3g} tokens per parameter, {planned:.0%} of the plan"
    part = SUCCESS(
        "criteria of success",
        detail + state,
        suspect="size" if small else "training",
        weight=STRONG if planned < 0.5 or small else HINT,
    )
    values = {criterion.metric: round(metrics[criterion.metric], 4) for criterion in known}
    return part.holds(not missed, values, ", ".join(map(str, known)) or "none measured")


def flat(losses: Sequence[float]) -> bool:
    """Whether the last fifth of the run lowered the loss by less than 1%."""
    part = max(len(losses) // 10, 1)
    before, after = float(np.mean(losses[-2 * part : -part] or losses)), float(np.mean(losses[-part:]))
    return after > 0.99 * before


def measured(layout: RunLayout, step: int) -> dict[str, Any]:
    """The figures of `bitnet evaluate` for this checkpoint, if it was asked; otherwise of the last evaluation
    in training.
    """
    if layout.verdict.is_file():
        verdict = read_json(layout.verdict)
        if verdict.get("step") == step:
            return dict(verdict.get("metrics", {}))
    rows = [row for row in read_lines(layout.evaluations).rows if row["step"] == step]
    row = {
        "nats_per_token" if key == "eval_loss" else key: value for key, value in (rows or [{}])[-1].items()
    }
    return {key: value for key, value in row.items() if isinstance(value, int | float)}
