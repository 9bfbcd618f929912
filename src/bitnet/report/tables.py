"""The words and numbers of a page: rows for its tables, one value per run. The template makes the HTML."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bitnet.errors import BitnetError
from bitnet.report.read_run import Recorded, Sample, clipped, number
from bitnet.units import duration, short_count

ABSENT = "not recorded"
MODES = ("greedy", "typical", "stress")  # of decoding, in this order
TERNARY_PARTS = ("attention", "feedforward")


@dataclass(frozen=True)
class Row:
    """One line of a table: a name and what each run has for it."""

    name: str
    values: tuple[str, ...]

    @property
    def differs(self) -> bool:
        """Whether two runs disagree."""
        return len(set(self.values)) > 1


@dataclass(frozen=True)
class ModelPart:
    """One part of a model: its parameters, their share of all, and the kind of its weights."""

    name: str
    parameters: int
    share: float
    kind: str


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted names and short texts."""
    out: dict[str, str] = {}
    for name, item in value.items():
        if isinstance(item, dict) and item:
            out |= flat(item, f"{prefix}{name}.")
        else:
            out[f"{prefix}{name}"] = setting(item)
    return out


def setting(value: Any) -> str:
    """A setting as text: grouped digits, yes or no, a dash for nothing."""
    if value is None:
        return "—"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:g}"
    return clipped(value if isinstance(value, str) else json.dumps(value))


def rows(records: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The settings of one or two records side by side."""
    flattened = [flat(record) for record in records]
    names = dict.fromkeys(name for record in flattened for name in record)
    return [Row(name, tuple(record.get(name, ABSENT) for record in flattened)) for name in names]


def differences(runs: Sequence[Recorded]) -> list[Row]:
    """Settings in which two runs differ."""
    return [row for row in rows([run.config for run in runs]) if row.differs]


def facts(run: Recorded) -> list[tuple[str, str, str]]:
    """The main figures of a run: name, value, unit."""
    scalars, evaluations = run.scalars, run.evaluations
    total = _counted(number(run.section("training").get("total_steps")))
    trained_s = float(np.nansum(scalars["step_time_ms"])) / 1e3 if "step_time_ms" in scalars else None
    return [
        ("updates", _counted(_last(scalars, "step")), f"of {total}"),
        ("tokens seen", _short(_last(scalars, "tokens_seen")), ""),
        ("parameters", _short(number(run.section("model").get("total_params"))), ""),
        ("training loss", _decimals(_recent(scalars, "loss")), "nats/token"),
        ("held-out loss", _decimals(_last(evaluations, "eval_loss")), "nats/token"),
        ("bits per byte", _decimals(_last(evaluations, "bits_per_byte")), "held out"),
        ("throughput", _counted(_median(scalars, "tokens_per_sec")), "tokens/s"),
        ("training time", "—" if trained_s is None else duration(trained_s), ""),
    ]


def _last(table: Mapping[str, Any], key: str) -> float | None:
    values = table[key][np.isfinite(table[key])] if key in table else []
    return float(values[-1]) if len(values) else None


def _recent(table: Mapping[str, Any], key: str, window: int = 100) -> float | None:
    """Mean of the last updates: a hundred, or the last twentieth of a short run."""
    values = table[key][np.isfinite(table[key])] if key in table else np.empty(0)
    return float(np.mean(values[-max(1, min(window, len(values) // 20)) :])) if len(values) else None


def _median(table: Mapping[str, Any], key: str) -> float | None:
    return float(np.nanmedian(table[key])) if key in table else None


def _counted(value: float | None) -> str:
    return "—" if value is None else f"{value:,.0f}"


def _short(value: float | None) -> str:
    return "—" if value is None else short_count(value)


def _decimals(value: float | None) -> str:
    return "—" if value is None else f"{value:.4f}"


@dataclass(frozen=True)
class Judged:
    """One criterion: its text, the measured value, the threshold."""

    name: str
    value: str
    threshold: str
    met: bool


def criteria(run: Recorded) -> list[Judged]:
    """The success criteria of the last evaluation."""
    listed = run.verdict.get("criteria")
    usable = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    return [
        Judged(
            _sign(setting(one.get("name"))),
            _measure(one, "value"),
            _measure(one, "threshold"),
            one.get("met") is True,
        )
        for one in usable
    ]


def _sign(text: str) -> str:
    return text.replace(">=", "≥").replace("<=", "≤")


def _measure(one: Mapping[str, Any], key: str) -> str:
    value = number(one.get(key))
    return "—" if value is None else f"{value:.4g}"


def failed_checks(run: Recorded) -> list[tuple[str, str, str]]:
    """Name, part and meaning of every check that failed in the last `bitnet diagnose` of the run."""
    listed = run.diagnosis.get("checks")
    checks = [one for one in listed if isinstance(one, Mapping)] if isinstance(listed, list) else []
    return [
        (setting(one.get("name")), setting(one.get("suspect")), setting(one.get("detail")))
        for one in checks
        if one.get("ok") is False
    ]


def measured(run: Recorded) -> list[Row]:
    """The metrics of the last evaluation, each with its number of cases."""
    metrics = run.verdict.get("metrics")
    values = metrics if isinstance(metrics, dict) else {}
    shown = [
        (name, found)
        for name, value in values.items()
        if not name.endswith("_cases") and (found := number(value)) is not None
    ]
    return [
        Row(name, (f"{found:,.4g}", _counted(number(values.get(f"{name}_cases"))))) for name, found in shown
    ]


def parts(run: Recorded) -> list[ModelPart]:
    """The parts of the model; empty if the configuration does not describe one."""
    model = run.section("model")
    if not model:
        return []
    from bitnet.nn.config import config_from_dict

    try:
        counts = config_from_dict(model).parameter_breakdown()
    except (BitnetError, TypeError, ValueError, ArithmeticError):
        return []
    total = sum(counts.values()) or 1
    ternary = model.get("weights", "ternary") == "ternary"
    kinds = {name: "ternary" if ternary and name in TERNARY_PARTS else "full precision" for name in counts}
    return [
        ModelPart(name.replace("_", " "), count, count / total, kinds[name]) for name, count in counts.items()
    ]


@dataclass(frozen=True)
class Prompted:
    """All samples for one prompt: a line per step, a cell per (mode, run)."""

    prompt: str
    lines: list[tuple[int, list[Sample | None]]]


@dataclass(frozen=True)
class SampleTables:
    """heads: (mode, run's place) for each column."""

    heads: list[tuple[str, int]]
    prompts: list[Prompted]
    modes: list[str]


def sample_tables(runs: Sequence[Recorded]) -> SampleTables:
    """Samples by prompt, with a line per step and a column per mode and run."""
    everything = {
        (place, one.prompt, one.step, one.mode): one for place, run in enumerate(runs) for one in run.samples
    }
    modes = sorted(
        {key[3] for key in everything},
        key=lambda mode: (MODES.index(mode) if mode in MODES else len(MODES), mode),
    )
    heads = [(mode, place) for mode in modes for place in range(len(runs))]
    prompts = []
    for prompt in dict.fromkeys(key[1] for key in everything):
        steps = sorted({key[2] for key in everything if key[1] == prompt})
        lines = [
            (step, [everything.get((place, prompt, step, mode)) for mode, place in heads]) for step in steps
        ]
        prompts.append(Prompted(prompt, lines))
    return SampleTables(heads, prompts, modes)
