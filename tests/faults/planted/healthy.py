"""Healthy models and runs, which an examination has to leave alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from planted.fault import ADAMW, PACKED, PLAIN, SHAPE, TINY, Fault
from planted.runs import fine_tuning, preference, stories, unfinished_in_bf16, unfinished_run


def of(name: str, base: list[str], flags: str = "") -> Fault:
    """A fresh model of these settings."""
    return Fault(name, ("none",), "", words=(*base, *flags.split()))


def made(name: str, prepare: Callable[[Path], list[str]]) -> Fault:
    """A run, or a fresh model on a corpus, that has to be made first."""
    return Fault(name, ("none",), "", prepare=prepare)


HEALTHY = [
    of("arithmetic quick", TINY),
    of("arithmetic quick, seed 7", TINY, "--seed 7"),
    of("arithmetic quick, full-precision weights", TINY, "--weights full"),
    of("arithmetic quick, unquantized activations", TINY, "--model.activations full"),
    of("arithmetic reference", ADAMW),
    of("arithmetic best, seed 3", ["arithmetic", "--variant", "best", *SHAPE], "--seed 3"),
    of("tictactoe quick", ["tictactoe", "--variant", "quick", *PLAIN]),
    of("tictactoe reference, seed 5", ["tictactoe", "--variant", "reference", *PLAIN], "--seed 5"),
    of("json_records quick", ["json_records", "--variant", "quick", *PLAIN]),
    of("python_subset quick", ["python_subset", "--variant", "quick", *PLAIN]),
    made("tinystories quick", stories),
    of(
        "arithmetic quick, untied, sub-norms, relu2",
        TINY,
        "--model.no-embeddings-tied --model.sub-norm --model.activation relu2",
    ),
    made("a run stopped after 40 updates", unfinished_run),
    made("a run stopped after 40 updates, bfloat16, two micro-batches", unfinished_in_bf16),
    of("arithmetic quick, bfloat16, int8 product", TINY, "--train.precision bf16 --train.product int8"),
    of("arithmetic quick, packed, fused, int8 input gradients", PACKED),
    of("arithmetic quick, packed, fused, bfloat16", PACKED, "--train.precision bf16"),
    of(
        "arithmetic quick, packed, fused, bfloat16 weight gradients",
        PACKED,
        "--train.precision fp32 --train.weight-gradient bf16",
    ),
    of(
        "arithmetic quick, float product, three micro-batches",
        TINY,
        "--train.product float --train.grad-accumulation-steps 3 --batch-size 8",
    ),
    of(
        "arithmetic reference, expressions, cosine",
        ADAMW,
        "--data.expressions 400 --train.schedule cosine --data.max-operand 60",
    ),
    of(
        "arithmetic reference, Muon with decay, bfloat16, seed 11",
        ADAMW,
        "--train.optimizer muon --train.precision bf16 --seed 11",
    ),
    made("fine-tuning of a run", fine_tuning),
    made("preference of a run", preference),
]
