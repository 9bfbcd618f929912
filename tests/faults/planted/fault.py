"""What a planted fault is, and the list that every module of this package enters its faults in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PLAIN = """
    --model.hidden-size 32 --model.num-layers 2 --model.num-heads 2 --model.num-kv-heads 1
    --model.ffn-hidden-size 64 --device cpu
""".split()
SHAPE = [*PLAIN, "--data.max-operand", "30"]
TINY = ["arithmetic", "--variant", "quick", *SHAPE]
PACKED = [*TINY, *"--train.product packed --train.input-gradient int8 --train.fused on".split()]
ADAMW = ["arithmetic", "--variant", "reference", *SHAPE]


@dataclass(frozen=True)
class Fault:
    """suspects: parts that may rightly be named; check: part of the name of a check that should be among the
    evidence; words: the arguments of `bitnet diagnose`. `prepare`, where it is given, makes or damages a run
    or a corpus in a folder and returns the arguments.
    """

    name: str
    suspects: tuple[str, ...]
    check: str
    plant: Callable[[], object] = lambda: None
    words: tuple[str, ...] = tuple(TINY)
    prepare: Callable[[Path], list[str]] | None = None


FAULTS: list[Fault] = []

Plant = Callable[[], object]
Prepare = Callable[[Path], list[str]]


def fault(
    name: str, suspects: str, check: str, words: list[str] | None = None, *, prepare: Prepare | None = None
) -> Callable[[Plant], Plant]:
    """Enter a planting function in the list."""

    def enter(plant: Plant) -> Plant:
        FAULTS.append(Fault(name, tuple(suspects.split()), check, plant, tuple(words or TINY), prepare))
        return plant

    return enter


def on_run(name: str, suspects: str, check: str) -> Callable[[Prepare], Prepare]:
    """Enter a function that makes a broken run."""

    def enter(prepare: Prepare) -> Prepare:
        FAULTS.append(Fault(name, tuple(suspects.split()), check, prepare=prepare))
        return prepare

    return enter


def by_settings(name: str, suspects: str, check: str, flags: str, base: list[str] | None = None) -> None:
    """Enter settings that are wrong by themselves."""
    words = (*(base or TINY), *flags.split())
    FAULTS.append(Fault(name, tuple(suspects.split()), check, words=words))
