"""A run is a value: model, training and data settings, frozen, checked, and written to meta/config.json.

The JSON has the seeds' sections (`model`, `training`, `data`) and keys; figures that follow from others are
properties here and are written there too, so that a reader need not compute them.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from bitnet.bounds import MOST_ROWS, MOST_STEPS, MOST_TOKENS, SEEDS, Bounds, check_fields, within
from bitnet.errors import ConfigError
from bitnet.nn.config import BitNetConfig
from bitnet.optim.optimizer import MuonPrecision, OptimizerConfig, OptimizerKind
from bitnet.optim.schedule import Schedule, ScheduleKind
from bitnet.train.data_config import DataConfig
from bitnet.train.objective import ObjectiveKind, Reduction

Precision = Literal["auto", "fp32", "bf16", "fp16"]
ProductChoice = Literal["auto", "packed", "int8", "float", "autocast"]
InputGradientChoice = Literal["auto", "int8", "float"]
WeightGradientChoice = Literal["auto", "bf16", "fp32"]
Compile = Literal["auto", "on", "off", "graphs"]
Fused = Literal["auto", "on", "off"]
_ROWS: Bounds = (1, MOST_ROWS)
_PERIOD: Bounds = (1, MOST_STEPS)
_RATE: Bounds = (0.0, 1e3)
_ABOVE_ZERO = 1e-12
BOUNDS: dict[str, Bounds] = {
    **dict.fromkeys(
        ("seq_len", "batch_size", "grad_accumulation_steps", "eval_cases", "unlikelihood_tokens"), _ROWS
    ),
    **dict.fromkeys(
        ("log_every", "eval_every", "sample_every", "probe_every", "checkpoint_every", "keep_every"), _PERIOD
    ),
    **dict.fromkeys(("total_steps", "stage1_end"), _PERIOD),
    **dict.fromkeys(("warmup_steps", "keep_last"), (0, MOST_STEPS)),
    **dict.fromkeys(
        ("stage2_lr", "final_lr", "stage1_wd", "stage2_wd", "stage1_unlikelihood", "stage2_unlikelihood"),
        _RATE,
    ),
    **dict.fromkeys(("peak_lr", "muon_lr", "preference_beta"), (_ABOVE_ZERO, 1e3)),
    "grad_clip_norm": (_ABOVE_ZERO, 1e9),
    "seed": SEEDS,
    "spike_factor": (1.0, 1e9),
    "spike_min_nats": (0.0, 1e9),
    "entropy_floor": (0.0, 100.0),
    "repetition_limit": (0, MOST_ROWS),
    "max_dumps": (0, MOST_ROWS),
}


DERIVED = ("tokens_per_step", "total_tokens")
"""Figures that the section `training` of meta/config.json holds beside the fields."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a model is trained. Steps are optimizer updates, numbered from 1."""

    seq_len: int
    """Targets per row, in tokens."""
    batch_size: int
    """Rows per micro-batch per process."""
    grad_accumulation_steps: int = 1
    total_steps: int
    seed: int = 42

    optimizer: OptimizerKind = "adamw"
    schedule: ScheduleKind = "two_stage"
    peak_lr: float = 0.0015
    stage2_lr: float = 0.001
    """Rate at the stage boundary (two_stage only)."""
    final_lr: float = 0.000015
    warmup_steps: int = 0
    stage1_end: int | None = None
    """Last update of stage 1; half of total_steps when not given."""
    stage1_wd: float = 0.1
    stage2_wd: float = 0.0
    grad_clip_norm: float = 1.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    muon_lr: float = 0.02
    """Peak rate of the ternary matrices under Muon; it follows the shape of the schedule."""
    muon_momentum: float = 0.95
    muon_precision: MuonPrecision = "auto"
    """Of Muon's iteration. bf16 is its published form, and faster on CPUs with bf16 units, but a small model
    learned more slowly with it; auto takes it on CUDA alone."""

    log_every: int = 50
    """Updates between lines of progress; metrics are written every update."""
    eval_every: int = 1000
    eval_cases: int = 200
    """Held-out cases judged at each evaluation inside training."""
    sample_every: int = 1000
    probe_every: int = 1000
    checkpoint_every: int = 5000
    keep_last: int = 5
    keep_every: int = 10_000

    spike_factor: float = 2.0
    """A loss above this times the mean of the 100 before, and half a nat over it, is an anomaly."""
    spike_min_nats: float = 0.5
    entropy_floor: float | None = 1.0
    """Mean entropy of the samples, in nats, below which they have collapsed; None for tasks over
    characters."""
    repetition_limit: int | None = 20
    """How often a greedy sample may repeat one token; None for tasks over characters."""
    max_dumps: int = 5
    """Anomalies of each rule that leave a folder; later ones of that rule are only flagged."""

    precision: Precision = "auto"
    """bf16: autocast; auto takes it on CUDA 8.0+, and on a CPU where a measurement of two seconds says that
    it pays at this shape. fp16: autocast with loss scaling, CUDA only."""
    product: ProductChoice = "auto"
    """How ternary layers multiply: with the C kernels, on int8 codes by torch, in floats, or codes in the
    format of autocast (for GPUs); auto takes what is fastest here."""
    input_gradient: InputGradientChoice = "auto"
    """How packed layers compute the gradient of their inputs: on int8 rows, or in the gradient dtype."""
    weight_gradient: WeightGradientChoice = "auto"
    """The format in which packed layers multiply for the gradient of their weights. precision bf16 implies
    bf16, and bf16 without it leaves everything else in float32."""
    fused: Fused = "auto"
    """Cross-entropy in one pass with the product of the head, which never holds all logits (head_loss.py);
    auto takes it for vocabularies of 1,024 entries or more. With packed products also norms, gates and rotary
    positions (nn/fused.py); auto takes them where the C kernels are fast."""
    compile: Compile = "auto"
    """torch.compile, with a fall-back and a message; auto tries it on CUDA only. graphs: with CUDA graphs,
    for small models (one micro-batch an update)."""
    objective: ObjectiveKind = "next_token"
    """preference: rows in pairs, the chosen answer and the rejected one (objective.py)."""
    preference_beta: float = 0.1
    """How strongly a preference holds on to the weights that it begins with; higher holds more."""
    stage1_unlikelihood: float = 0.0
    """Weight of the unlikelihood of recent tokens beside the loss, against loops in greedy text
    (objective.py); 0: none."""
    stage2_unlikelihood: float = 0.0
    """The same after the stage boundary, where it costs less of the loss."""
    unlikelihood_tokens: int = 64
    """How far back a token counts as recent."""
    loss_reduction: Reduction = "mean"
    """Gradient of the mean over an update's scored tokens, or of their sum."""
    start_from: str | None = None
    """Folder of a checkpoint whose weights the run begins with; random ones when not given. `--from RUN`
    fills it in."""

    def __post_init__(self) -> None:
        check_fields("train.", self, BOUNDS)
        for name in ("adam_beta1", "adam_beta2", "muon_momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"train.{name} is {getattr(self, name)}; it must be at least 0 and below 1")
        if self.objective == "preference":
            self._check_preference()
        if self.warmup_steps > self.total_steps:
            raise ConfigError(
                f"train.warmup_steps {self.warmup_steps} exceeds train.total_steps {self.total_steps}; lower "
                "it"
            )
        if not 0 < self.boundary <= self.total_steps:
            raise ConfigError(
                f"train.stage1_end {self.stage1_end} is outside 1..{self.total_steps}; set it within the run"
            )

    def _check_preference(self) -> None:
        """Raise ConfigError for settings that a preference cannot have."""
        if self.batch_size % 2:
            raise ConfigError(
                f"train.batch_size is {self.batch_size}; a preference reads rows in pairs, so it must be even"
            )
        for name in ("stage1_unlikelihood", "stage2_unlikelihood"):
            if getattr(self, name):
                raise ConfigError(
                    f"train.{name} is {getattr(self, name)}; it goes with next_token only, so set it to 0 "
                    "for a preference"
                )

    @property
    def boundary(self) -> int:
        """m, the last update of stage 1."""
        return max(self.total_steps // 2, 1) if self.stage1_end is None else self.stage1_end

    @property
    def tokens_per_step(self) -> int:
        """Targets per update, padding included."""
        return self.batch_size * self.grad_accumulation_steps * self.seq_len

    @property
    def total_tokens(self) -> int:
        """Targets of the whole run."""
        return self.total_steps * self.tokens_per_step

    def rates(self) -> Schedule:
        """The schedule of this run."""
        return Schedule(
            kind=self.schedule,
            total_steps=self.total_steps,
            warmup_steps=self.warmup_steps,
            stage1_end=self.boundary,
            peak_lr=self.peak_lr,
            stage2_lr=self.stage2_lr,
            final_lr=self.final_lr,
            stage1_wd=self.stage1_wd,
            stage2_wd=self.stage2_wd,
        )

    def optimizer_config(self) -> OptimizerConfig:
        """The settings that the optimizers need."""
        return OptimizerConfig(
            kind=self.optimizer,
            adam_beta1=self.adam_beta1,
            adam_beta2=self.adam_beta2,
            muon_momentum=self.muon_momentum,
            muon_lr_ratio=self.muon_lr / self.peak_lr,
            muon_precision=self.muon_precision,
        )

    def mandatory_checkpoints(self) -> frozenset[int]:
        """0, the update before the stage boundary, the boundary, and the last."""
        return frozenset({0, self.boundary - 1, self.boundary, self.total_steps})

    def has_checkpoint(self, step: int) -> bool:
        """Whether a checkpoint of this update is due, apart from those that a signal causes."""
        return step % self.checkpoint_every == 0 or step in self.mandatory_checkpoints()

    def with_total_steps(self, steps: int) -> TrainConfig:
        """The same recipe in `steps` updates: boundary at the same share, warm-up at most a tenth."""
        within("--num-steps", steps, 1, MOST_STEPS)
        boundary = (
            None if self.stage1_end is None else max(1, round(self.stage1_end * steps / self.total_steps))
        )
        warmup = min(self.warmup_steps, steps // 10)
        return dataclasses.replace(self, total_steps=steps, stage1_end=boundary, warmup_steps=warmup)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides what a run computes."""

    model: BitNetConfig
    train: TrainConfig
    data: DataConfig

    def __post_init__(self) -> None:
        within(
            "the number of tokens of the run (train.total_steps x the tokens of an update)",
            self.train.total_tokens,
            1,
            MOST_TOKENS,
        )
        if self.train.seq_len > self.model.max_seq_length:
            raise ConfigError(
                f"train.seq_len {self.train.seq_len} is longer than model.max_seq_length "
                f"{self.model.max_seq_length}; lower --seq-len or raise --model.max-seq-length"
            )

    def to_json(self) -> dict[str, Any]:
        """The sections of meta/config.json, derived figures included."""
        model, train = self.model, self.train
        return {
            "model": {
                **dataclasses.asdict(model),
                "head_dim": model.head_dim,
                "total_params": model.total_params,
            },
            "training": {
                **dataclasses.asdict(train),
                "stage1_end": train.boundary,
                "tokens_per_step": train.tokens_per_step,
                "total_tokens": train.total_tokens,
            },
            "data": {**dataclasses.asdict(self.data), **self.data.derived()},
        }

    def completed(self, stored: dict[str, Any]) -> dict[str, Any]:
        """A stored meta/config.json with settings that were added since, so that old runs compare equal."""
        sections: dict[str, BitNetConfig | TrainConfig | DataConfig] = {
            "model": self.model,
            "training": self.train,
            "data": self.data,
        }
        # The default of a later setting is what runs did before it existed.
        filled = {
            name: {**_defaults(part), **stored[name]} for name, part in sections.items() if name in stored
        }
        return {**stored, **filled}


def _defaults(part: BitNetConfig | TrainConfig | DataConfig) -> dict[str, Any]:
    return {
        field.name: field.default
        for field in dataclasses.fields(part)
        if field.default is not dataclasses.MISSING
    }
