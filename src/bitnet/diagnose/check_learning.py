"""Does it learn, is it large enough, has it trained long enough? Suspects: training and size, when nothing
above them is broken.

Learning is a symptom: it fails for any broken part, so these checks speak only where every direct check was
silent. The control is the same trial with full-precision weights: if both fail alike, it is not the ternary
part.

Known to suffice: 20 tokens per parameter for text (Chinchilla, arXiv:2203.15556); the tasks here reach their
criteria with 3 to 9 (README). Loss is S-shaped, so a run that is still going is not judged by its criteria.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from bitnet.data.stream import Batch
from bitnet.diagnose.finding import HINT, PROOF, STRONG, Check, Part, below
from bitnet.diagnose.ngrams import Counts, rows_of
from bitnet.diagnose.subject import PLAIN, Narrow, OneBatch, Subject
from bitnet.files import read_json
from bitnet.nn.config import BitNetConfig
from bitnet.run.metrics import read_lines
from bitnet.train.observe.ternary import ternary_codes

TRIAL, FULL_TRIAL = 40, 400
TRIAL_ROWS, TRIAL_COLUMNS = 8, 48
FALLS_TO, NEAR_ZERO = 0.8, 0.1
"""40 updates on one batch brought every experiment here below 0.8 of its first loss
(tests/test_experiments.py holds 30 updates to it); 400 bring it near zero."""
TOKENS_PER_PARAMETER = 0.1
"""Below this nothing is published to have learned a task from nothing. Ours reach theirs with 1.2 and more.
Admitted doubt: wide."""
WEIGHTS_PER_ENTRY = 16
"""Weights in the blocks for each entry of the vocabulary. TinyStories' smallest models that still wrote
sentences had about 40 in full precision (1M, arXiv:2305.07759); the 95M baseline has 2,200. Admitted doubt:
half an order of magnitude."""
TRAINING = Part(
    "training",
    "tests/test_experiments.py; a model with more weights than targets can store them",
    weight=STRONG,
)
OPTIMIZER_SYMPTOM = Part(
    "optimizer", "codes must move for a ternary model to learn", weight=HINT, direct=False
)
QUANTIZATION_SYMPTOM = Part(
    "quantization", "every run has a control (--weights full)", weight=STRONG, direct=False
)
SIZE = Part(
    "size", "arXiv:2305.07759 had about 40 at its smallest; the 95M baseline has 2,200", weight=STRONG
)
QUANTIZATION = Part("quantization", "a uniform guess", weight=STRONG)
TRAINING_SYMPTOM = Part("training", "S-shaped, but not rising (recipes)", weight=STRONG, direct=False)
EVALUATION = Part(
    "evaluation",
    "train and held-out rows are drawn alike (ours)",
    weight=HINT,
    explained_by=frozenset({"data"}),
)


def learning(subject: Subject, training: Batch) -> Iterator[Check]:
    """All checks of this file."""
    from_nothing = not subject.training.get(
        "start_from"
    )  # the rates of fine-tuning teach a fresh model little, and its tokens are few
    if from_nothing:
        yield from overfits(subject)
    yield from large_enough(subject)
    if subject.layout is None and from_nothing:
        yield from plan(subject)
    elif subject.layout is not None:
        yield from trained(subject, training)


def trial(subject: Subject, config: BitNetConfig, updates: int) -> tuple[list[float], float]:
    """Losses of a fresh model on one narrow batch, and the share of codes that flipped. Ends early once
    enough was learned.
    """
    columns = min(TRIAL_COLUMNS, int(subject.training["seq_len"]))
    batch = Narrow(subject.task.source, columns).rows(np.arange(TRIAL_ROWS, dtype=np.int64))
    model = subject.new_model(config)
    before = ternary_codes(model)
    settings: dict[str, Any] = {
        "batch_size": TRIAL_ROWS,
        "grad_accumulation_steps": 1,
        "seq_len": columns,
        **PLAIN,
    }
    losses: list[float] = []
    for report in subject.train(
        model, subject.new_optimizers(model), OneBatch(batch), num_steps=updates, **settings
    ):
        losses.append(report.loss)
        if len(losses) > 3 and max(losses[-3:]) < limit_of(losses, full=subject.full):
            break
    flipped = [float((codes != before[name]).float().mean()) for name, codes in ternary_codes(model).items()]
    return losses, sum(flipped) / len(flipped)


def limit_of(losses: Sequence[float], *, full: bool) -> float:
    """The loss that counts as learned."""
    return NEAR_ZERO if full else FALLS_TO * losses[0]


def overfits(subject: Subject) -> Iterator[Check]:
    """One batch, learned by heart, by the real loop at the real peak rate; and the control."""
    updates = FULL_TRIAL if subject.full else TRIAL
    losses, flipped = trial(subject, subject.config, updates)
    first, last = losses[0], min(losses[-3:], default=math.nan)
    limit = limit_of(losses, full=subject.full)
    found = TRAINING_SYMPTOM(
        "one batch can be learned by heart", "the loss of the same few rows does not fall"
    ).holds(
        below(last, limit),
        [round(first, 4), round(last, 4)],
        f"below {limit:.3f} nats/token within {updates} updates",
    )
    yield found
    if subject.config.weights == "ternary":
        yield OPTIMIZER_SYMPTOM(
            "codes flip in the trial",
            "latent weights move, or not, but no code does" if not flipped else "codes are thrown about",
        ).holds(0 < flipped < 0.8, flipped, "a share above 0 and below 0.8")
        if subject.full or not found.ok:
            yield from control(subject, updates, last, limit)


def control(subject: Subject, updates: int, ternary_end: float, limit: float) -> Iterator[Check]:
    """The same with full-precision weights and inputs."""
    full, _ = trial(subject, dataclasses.replace(subject.config, weights="full", activations="full"), updates)
    end = min(full[-3:], default=math.nan)
    both = below(end, limit) == below(ternary_end, limit)
    words = (
        "learns or fails like the ternary one: it is not the ternary part"
        if both
        else "learns where the ternary model does not: it is the ternary part"
    )
    yield QUANTIZATION_SYMPTOM(
        "control with full-precision weights", f"the same model with full-precision weights {words}"
    ).holds(
        both or below(ternary_end, limit), [round(ternary_end, 4), round(end, 4)], "both learn, or both fail"
    )


def large_enough(subject: Subject) -> Iterator[Check]:
    """Weights in the blocks for each entry of the vocabulary, and one for each position of a row."""
    parts = subject.config.parameter_breakdown()
    inner = parts["attention"] + parts["feedforward"]
    ratio = inner / subject.config.vocab_size
    yield SIZE(
        "large enough for its vocabulary",
        "nearly all parameters are embeddings: a larger model or a smaller vocabulary is needed",
    ).at_least(
        ratio, WEIGHTS_PER_ENTRY, f"weights in the blocks for each of {subject.config.vocab_size:,} ids"
    )
    yield SIZE(
        "rows fit the model's length",
        "rows are longer than the model's positions",
        source="model.max_seq_length",
        weight=PROOF,
    ).holds(
        int(subject.training["seq_len"]) <= subject.config.max_seq_length,
        int(subject.training["seq_len"]),
        f"<= {subject.config.max_seq_length}",
    )


def plan(subject: Subject) -> Iterator[Check]:
    """Whether the plan of a fresh experiment has enough tokens."""
    ratio = int(subject.training["total_tokens"]) / subject.config.total_params
    yield TRAINING(
        "planned tokens per parameter",
        "the plan ends before anything can be learned: more updates",
        source="nothing is published to learn from less",
    ).holds(
        ratio >= TOKENS_PER_PARAMETER, ratio, f">= {TOKENS_PER_PARAMETER:g}; 20 for text (arXiv:2203.15556)"
    )


def trained(subject: Subject, training: Batch) -> Iterator[Check]:
    """A run's losses, its figures against its criteria, and what is most likely missing where they are not
    met.
    """
    assert subject.layout is not None
    rows = [
        row
        for row in read_lines(subject.layout.scalars).rows
        if isinstance(row.get("loss"), float) and row["step"] <= max(subject.step, 1)
    ]
    losses = [float(row["loss"]) for row in rows]
    if not losses:
        return
    yield from curve(subject, losses)
    finished = subject.step >= int(subject.training["total_steps"])
    predicts = (
        subject.training.get("objective") != "preference"
    )  # its loss is no cross-entropy, and compares with none
    if predicts:
        yield from consistent(subject, losses)
    if finished and predicts:
        yield from against_counting(subject, training, losses)
    if finished:
        yield from success(subject, losses)


def curve(subject: Subject, losses: Sequence[float]) -> Iterator[Check]:
    """Began near ln(V), fell, and did not end above where it had been."""
    uniform = math.log(subject.config.vocab_size)
    yield QUANTIZATION(
        "recorded loss begins at ln(V)", "the run began sure of wrong answers: its initialisation was broken"
    ).holds(losses[0] <= uniform + 1.0, losses[0], f"<= {uniform + 1:.2f} nats/token at the first update")
    if len(losses) < 20:
        return
    window = max(len(losses) // 20, 5)
    means = [
        float(np.mean(losses[begin : begin + window])) for begin in range(0, len(losses) - window + 1, window)
    ]
    risen = means[-1] - min(means)
    yield TRAINING_SYMPTOM(
        "loss ends where it was lowest",
        "training went well and then apart: the rate is too high, or the data changed",
    ).holds(risen <= max(0.5, 0.25 * min(means)), risen, "at most 0.5 nats above its lowest average")


def consistent(subject: Subject, losses: Sequence[float]) -> Iterator[Check]:
    """Training and held-out loss tell one story."""
    assert subject.layout is not None
    told = [
        row
        for row in read_lines(subject.layout.evaluations).rows
        if row["step"] <= subject.step and isinstance(row.get("eval_loss"), float)
    ]
    if not told or read_json(subject.layout.fingerprint).get("other_share"):
        # nothing to compare, or rows of another text are mixed in, which the held-out ones have none of
        return
    at = losses[: int(told[-1]["step"])]  # up to the update that was evaluated
    recent = min(
        float(np.mean(at[-20:])), float(np.mean(at[-3:]))
    )  # a loss that still falls is ahead of its average
    gap = float(told[-1]["eval_loss"]) - recent
    yield EVALUATION(
        "held-out loss is not far below the training loss",
        "evaluation is easier than training: it sees training rows, or the answers",
    ).holds(gap >= -max(0.3, 0.3 * recent), gap, ">= -0.3 nats or 30%: held out is not easier")
    over = gap > max(1.0, recent)
    epochs = subject.task.source.epochs(
        int(subject.training["batch_size"]) * int(subject.training["grad_accumulation_steps"]) * subject.step
    )
    yield TRAINING_SYMPTOM(
        "held-out loss follows the training loss",
        f"the training rows are learned by heart ({epochs:.1f} epochs): more data, or fewer updates",
        source="generalisation gap (ours)",
        weight=HINT,
    ).holds(not over, gap, "at most a nat, and at most twice, above the training loss")


def against_counting(subject: Subject, training: Batch, losses: Sequence[float]) -> Iterator[Check]:
    """A trained model knows more than someone who counted pairs of tokens."""
    if subject.task.end_mark is not None and float(training.loss_mask.float().mean()) < 0.5:
        return  # scored on answers only: their surprise is not that of the text
    rows = rows_of(training, subject.task.tokenizer.pad_id)
    alone, pairs = Counts.of(rows[: len(rows) * 3 // 4], subject.config.vocab_size).surprise(
        rows[len(rows) * 3 // 4 :]
    )
    recent = float(np.mean(losses[-min(20, len(losses)) :]))
    yield TRAINING_SYMPTOM(
        "loss below that of counting",
        "the model knows no more than "
        f"{'the frequencies of tokens' if recent > 0.97 * alone else 'pairs of tokens'}",
        source="counted in the training rows",
    ).holds(
        recent < pairs, recent, f"< {pairs:.3f} nats/token by pairs of tokens ({alone:.3f} by single ones)"
    )


def success(subject: Subject, losses: Sequence[float]) -> Iterator[Check]:
    """A finished run against its criteria; if it fails, whether tokens or weights are missing."""
    metrics = _measured(subject)
    known = [criterion for criterion in subject.criteria if criterion.metric in metrics]
    missed = [str(criterion) for criterion in known if not criterion.met(metrics[criterion.metric])]
    tokens = int(subject.training["tokens_per_step"]) * subject.step
    ratio = tokens / subject.config.total_params
    planned = tokens / subject.planned_tokens
    flat = _flat(losses)
    small = flat and ratio >= 20
    detail = (
        f"{', '.join(missed)} not met after {ratio:.3g} tokens per parameter, {planned:.0%} of the variant's "
        "plan"
        + (
            "; the loss no longer falls: more weights"
            if small
            else "; the loss still falls"
            if not flat
            else ""
        )
    )
    yield TRAINING_SYMPTOM(
        "criteria of success",
        detail,
        suspect="size" if small else "training",
        source="the variant's own criteria; 20 tokens per parameter for text (arXiv:2203.15556)",
        weight=STRONG if planned < 0.5 or small else HINT,
    ).holds(
        not missed,
        {c.metric: round(metrics[c.metric], 4) for c in known},
        ", ".join(map(str, known)) or "none measured",
    )


def _flat(losses: Sequence[float]) -> bool:
    """Whether the last fifth of the run lowered the loss by less than 1%."""
    part = max(len(losses) // 10, 1)
    before, after = float(np.mean(losses[-2 * part : -part] or losses)), float(np.mean(losses[-part:]))
    return after > 0.99 * before


def _measured(subject: Subject) -> dict[str, Any]:
    """The figures of `bitnet evaluate` for this checkpoint, if it was asked; else of the last evaluation in
    training.
    """
    assert subject.layout is not None
    if subject.layout.verdict.is_file():
        verdict = read_json(subject.layout.verdict)
        if verdict.get("step") == subject.step:
            return dict(verdict.get("metrics", {}))
    rows = [row for row in read_lines(subject.layout.evaluations).rows if row["step"] == subject.step]
    named = {"eval_loss": "nats_per_token"}
    return {
        named.get(key, key): value
        for key, value in (rows[-1] if rows else {}).items()
        if isinstance(value, int | float)
    }
