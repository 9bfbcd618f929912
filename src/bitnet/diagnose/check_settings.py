"""Are the settings themselves such that something can be learned? Suspects: optimizer, quantization,
evaluation.

Other checks take the settings as what was asked for. Here each must be in the range that is known to work,
and fit the others: betas in order, rates that fall, a warm-up that ends, decay that acts and is switched off.
Ranges are wide: they hold every published recipe and every variant here. Not here: whether the settings are
followed.
"""

from __future__ import annotations

from collections.abc import Iterator

from bitnet.diagnose.finding import HINT, STRONG, Check, Part
from bitnet.diagnose.subject import Subject
from bitnet.nn.config import BitNetConfig
from bitnet.train.config import TrainConfig

RATES = Part("optimizer", "b1.58 training tips; published recipes", weight=STRONG)
MODEL = Part("quantization", "published models", weight=STRONG)
JUDGED = Part("evaluation", "ours", weight=STRONG)
PREFERENCE_PEAK, FINE_TUNING_LOWEST = (1e-8, 3e-5), 1e-6
ADAMW_PEAK, MUON_PEAK, CLIP, DECAY = (2e-4, 8e-3), (4e-3, 0.1), (0.05, 20.0), 0.3
"""AdamW: 1.0e-3 to 2.4e-3 is published for ternary models of 30 to 700M, three times that still trains small
ones here; Muon's 0.02 to 0.04 likewise (parameter-golf's ternary records). 10 times either diverges, a tenth
hardly moves a code."""
WARM_UP, LONG_RUN = 0.25, 200
"""Share of the run at most; runs of fewer updates are trials, whose periods and shares are nobody's plan."""
EPSILONS, THETAS = (1e-8, 1e-3), (500.0, 1e7)
"""1e-5 and 1e-6 are published for norms; 10,000 to 1,000,000 for theta."""
OUTSIDE = "outside the range that is known to train"


def settings(subject: Subject) -> Iterator[Check]:
    """All checks of this file."""
    train = subject.settings.train
    yield from rates(train)
    yield from shape_of_the_schedule(train)
    yield from decay(train)
    yield from moments(train)
    yield from model(subject.config)
    yield objective(train)
    yield from watching(subject)


def rates(train: TrainConfig) -> Iterator[Check]:
    """Peak rates and clipping."""
    (low, high), source = ADAMW_PEAK, "published for ternary models: 1.0e-3 to 2.4e-3"
    if train.objective == "preference":
        (low, high) = PREFERENCE_PEAK
        source = "2e-7 for 2B parameters (arXiv:2504.12285); at 5e-5 sentences fell apart here (docs/log.md)"
    elif train.start_from:
        low = FINE_TUNING_LOWEST  # what is learned already is to be kept
    yield RATES("peak learning rate", OUTSIDE, source=source).within(train.peak_lr, low, high)

    if train.optimizer == "muon":
        low = 0.1 * MUON_PEAK[0] if train.start_from else MUON_PEAK[0]
        yield RATES("Muon's peak rate", OUTSIDE, source="published for ternary models: 0.02 to 0.04").within(
            train.muon_lr, low, MUON_PEAK[1]
        )
    yield RATES("clipping norm", OUTSIDE, source="1.0 in the seeds and most recipes").within(
        train.grad_clip_norm, *CLIP
    )


def shape_of_the_schedule(train: TrainConfig) -> Iterator[Check]:
    """Rates that fall, a warm-up that ends, a boundary inside the run."""
    middle = [train.stage2_lr] if train.schedule == "two_stage" else []
    points = [train.peak_lr, *middle, train.final_lr]
    falls = points == sorted(points, reverse=True) and train.final_lr <= 0.5 * train.peak_lr
    yield RATES(
        "rates fall to the end",
        "the rate does not fall, and codes never settle",
        source="b1.58 training tips: two stages of falling rates",
    ).holds(falls, points, "each at most the one before, the last at most half of the peak")

    if train.total_steps < LONG_RUN:
        return
    yield RATES(
        "warm-up as a share of the run",
        "most of the run is warm-up",
        source="375 of 60,000 in the seeds, at most a tenth in published recipes",
    ).within(train.warmup_steps / train.total_steps, 0.0, WARM_UP)
    if train.schedule in ("two_stage", "warm_down"):
        yield RATES(
            "stage boundary as a share of the run",
            "one of the two stages hardly exists",
            source="half in the seeds; 0.5 to 0.8 in published two-stage recipes",
        ).within(train.boundary / train.total_steps, 0.1, 0.95)


def decay(train: TrainConfig) -> Iterator[Check]:
    """Decay that acts in stage 1, where it is asked for, and is switched off."""
    first, second = train.stage1_wd, train.stage2_wd
    yield RATES(
        "weight decay is switched off",
        "latent weights are pulled to zero to the end and codes never settle",
        source="b1.58 training tips; Spectra: the removal helps below 1B",
    ).holds(second == 0 and 0 <= first <= DECAY, [first, second], f"0..{DECAY:g} in stage 1, 0 in stage 2")

    none_meant = first == 0 and not (train.schedule == "two_stage" and train.optimizer == "adamw")
    yield RATES(
        "weight decay acts", "decay is on, and too small to do anything", source="0.1 in the seeds"
    ).holds(
        none_meant or bool(train.start_from) or first >= 1e-3,
        first,
        "at least 0.001 where it is asked for, as the two-stage schedule does",
    )


def moments(train: TrainConfig) -> Iterator[Check]:
    """Adam's two moments and Muon's momentum."""
    first, second = train.adam_beta1, train.adam_beta2
    yield RATES(
        "Adam's betas",
        "moments that forget at once or never, or in each other's place",
        source="0.9 and 0.95 in the seeds, 0.999 in arXiv:1412.6980",
    ).holds(
        0.8 <= first <= 0.95 and 0.9 <= second <= 0.9999 and first <= second,
        [first, second],
        "0.8..0.95 and 0.9..0.9999, the second not below the first",
    )
    if train.optimizer == "muon":
        yield RATES("Muon's momentum", OUTSIDE, source="0.95 (K. Jordan, 2024)").within(
            train.muon_momentum, 0.8, 0.99
        )


def model(config: BitNetConfig) -> Iterator[Check]:
    """The epsilon of the norms and the base of the rotary positions."""
    yield MODEL(
        "epsilon of the norms",
        "norms divide by the epsilon instead of their input, or by zero",
        source="1e-5 and 1e-6 in published models",
    ).within(config.norm_eps, *EPSILONS)
    yield MODEL(
        "base of the rotary positions",
        "positions turn all alike, or not at all",
        source="10,000 (arXiv:2104.09864) to 1,000,000",
    ).within(config.rope_theta, *THETAS)

    slowest = config.rope_theta ** (1 - 2 / config.head_dim) * 6.3
    yield MODEL(
        "the slowest rotary pair turns less than once in a row",
        "far positions look like near ones",
        source="2 pi theta^(1 - 2/D) positions a turn",
    ).holds(
        config.head_dim <= 4 or slowest >= config.max_seq_length / 2,
        slowest,
        f">= {config.max_seq_length // 2} positions",
    )


def objective(train: TrainConfig) -> Check:
    """The strength of a preference, or of what is minimised beside the loss."""
    if train.objective == "preference":
        return RATES("beta of the preference", OUTSIDE, source="0.1 (arXiv:2305.18290)").within(
            train.preference_beta, 0.01, 1.0
        )
    return RATES(
        "weight of the unlikelihood", "the penalty outweighs the loss", source="1.0 in arXiv:1908.04319"
    ).within(max(train.stage1_unlikelihood, train.stage2_unlikelihood), 0.0, 10.0)


def watching(subject: Subject) -> Iterator[Check]:
    """A run is evaluated more than once, alarms can tell a spike, and enough is held out to measure with."""
    train = subject.settings.train
    total, every = train.total_steps, train.eval_every
    if total >= 10 * LONG_RUN:
        yield JUDGED(
            "evaluations during the run",
            "nothing is known of the run before its end",
            source="10 to 60 evaluations in the plan's runs",
        ).holds(every <= total / 2, every, f"every {total // 2:,} updates or more often")
    yield JUDGED("alarms are above the noise", "every update is called a spike", weight=HINT).holds(
        train.spike_factor > 1, train.spike_factor, "above 1"
    )
    scored = sum(int(batch.loss_mask.sum()) for batch in subject.task.frozen_evaluation())
    yield JUDGED("held-out tokens to measure with", "the held-out loss is chance").at_least(
        scored, 16, "scored tokens"
    )
