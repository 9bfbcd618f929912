"""Does it learn, is it large enough, has it enough to learn from? Suspects: training and size, when nothing
above them is broken.

Learning is a symptom: it fails for any broken part, so these checks speak only where every direct check was
silent. The control is the same trial with full-precision weights: if both fail alike, it is not the ternary
part. Not here: how a run went (check_trained.py).

Known to suffice: 20 tokens per parameter for text (Chinchilla, arXiv:2203.15556); the tasks here reach their
criteria with 3 to 9 (README).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np

from bitnet.diagnose.finding import HINT, PROOF, STRONG, Check, Part, below
from bitnet.diagnose.subject import Subject
from bitnet.diagnose.watch import Narrow, OneBatch, small_steps
from bitnet.nn.config import BitNetConfig
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
LEARNS = Part(
    "training", "a model with more weights than targets can store them", weight=STRONG, direct=False
)
FLIPS = Part("optimizer", "codes must move for a ternary model to learn", weight=HINT, direct=False)
CONTROL = Part("quantization", "every run has a control (--weights full)", weight=STRONG, direct=False)
SIZE = Part("size", "arXiv:2305.07759 had about 40 at its smallest; model.max_seq_length", weight=STRONG)
PLAN = Part("training", "nothing is published to learn from less", weight=STRONG)


def learning(subject: Subject) -> Iterator[Check]:
    """All checks of this file."""
    # The rates of fine-tuning teach a fresh model little, and its tokens are few.
    from_nothing = not subject.training.get("start_from")
    if from_nothing:
        yield from overfits(subject)
    yield from large_enough(subject.config, int(subject.training["seq_len"]))
    if subject.fresh and from_nothing:
        ratio = int(subject.training["total_tokens"]) / subject.config.total_params
        short = "the plan ends before anything can be learned: more updates"
        yield PLAN("planned tokens per parameter", short).at_least(
            ratio, TOKENS_PER_PARAMETER, "; 20 for text (arXiv:2203.15556)"
        )


def trial(subject: Subject, config: BitNetConfig, updates: int) -> tuple[list[float], float]:
    """Losses of a fresh model on one narrow batch, and the share of codes that flipped. Ends early once
    enough was learned.
    """
    settings = small_steps(subject, TRIAL_ROWS, TRIAL_COLUMNS)
    batch = Narrow(subject.task.source, settings["seq_len"]).rows(np.arange(TRIAL_ROWS, dtype=np.int64))
    model = subject.new_model(config)
    before = ternary_codes(model)

    losses: list[float] = []
    optimizers = subject.new_optimizers(model)
    for report in subject.train(model, optimizers, OneBatch(batch), num_steps=updates, **settings):
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
    last, limit = min(losses[-3:], default=math.nan), limit_of(losses, full=subject.full)
    learned = below(last, limit)
    yield LEARNS("one batch can be learned by heart", "the loss of the same few rows does not fall").holds(
        learned,
        [round(losses[0], 4), round(last, 4)],
        f"below {limit:.3f} nats/token within {updates} updates",
    )
    if subject.config.weights != "ternary":
        return
    other = "codes are thrown about" if flipped else "latent weights move, or not, but no code does"
    yield FLIPS("codes flip in the trial", other).holds(
        0 < flipped < 0.8, flipped, "a share above 0 and below 0.8"
    )
    if subject.full or not learned:
        yield control(subject, updates, last, limit)


def control(subject: Subject, updates: int, ternary_end: float, limit: float) -> Check:
    """The same with full-precision weights and inputs."""
    full = dataclasses.replace(subject.config, weights="full", activations="full")
    end = min(trial(subject, full, updates)[0][-3:], default=math.nan)
    learned, both = below(ternary_end, limit), below(end, limit) == below(ternary_end, limit)
    alike = "learns or fails like the ternary one: it is not the ternary part"
    apart = "learns where the ternary model does not: it is the ternary part"
    words = f"the same model with full-precision weights {alike if both else apart}"
    return CONTROL("control with full-precision weights", words).holds(
        both or learned, [round(ternary_end, 4), round(end, 4)], "both learn, or both fail"
    )


def large_enough(config: BitNetConfig, seq_len: int) -> Iterator[Check]:
    """Weights in the blocks for each entry of the vocabulary, and a position for each token of a row."""
    parts = config.parameter_breakdown()
    small = "nearly all parameters are embeddings: a larger model or a smaller vocabulary is needed"
    yield SIZE("large enough for its vocabulary", small).at_least(
        (parts["attention"] + parts["feedforward"]) / config.vocab_size,
        WEIGHTS_PER_ENTRY,
        f"weights in the blocks for each of {config.vocab_size:,} ids",
    )
    long = "rows are longer than the model's positions"
    yield SIZE("rows fit the model's length", long, weight=PROOF).below(
        seq_len, config.max_seq_length, "tokens of a row"
    )
