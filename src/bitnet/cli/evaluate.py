"""`bitnet evaluate RUN`: measure the success criteria on held-out cases."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from bitnet.cli.catalogue import config_of_run, find_variant
from bitnet.cli.flags import RunFlags, parse

if TYPE_CHECKING:
    from bitnet.train.recipe import Shown, Task
    from bitnet.trained import TrainedModel


@dataclass(frozen=True, kw_only=True)
class EvaluateFlags(RunFlags):
    """Flags of `bitnet evaluate`."""

    run: Positional[str]
    """Run id, directory, checkpoint, experiment name, or latest."""
    check: bool = False
    """Exit with code 1 unless every criterion is met."""
    show: int = 10
    """How many held-out cases to show with the model's answers."""
    device: str = "auto"
    """auto, cpu or cuda."""


def main(arguments: Sequence[str]) -> int:
    """Print metrics, criteria and the verdict."""
    flags = parse(EvaluateFlags, arguments, "evaluate")
    from bitnet.run.layout import write_json
    from bitnet.train.machine import choose_device
    from bitnet.trained import load

    trained = load(flags.run, runs_dir=flags.runs_dir, device=choose_device(flags.device))
    for note in trained.notes:
        print(f"passing over a damaged checkpoint: {note}", file=sys.stderr)
    experiment, variant, config = config_of_run(trained.layout)
    task = experiment.open(config)
    started = time.perf_counter()
    result = judge(trained, task, find_variant(experiment, variant).criteria)
    result["seconds"] = round(time.perf_counter() - started, 2)
    write_json(trained.layout.verdict, result)
    out = sys.stderr if flags.json else sys.stdout
    print(_page(result, task.show(trained.model, flags.show) if flags.show > 0 else []), file=out)
    if flags.json:
        print(json.dumps(result))
    return 1 if flags.check and result["verdict"] == "FAIL" else 0


def judge(trained: TrainedModel, task: Task, criteria: Sequence[Any]) -> dict[str, Any]:
    """run, step, verdict, metrics and criteria, as the command line's contract has them."""
    from bitnet.evaluate.loss import held_out_loss

    metrics = {**held_out_loss(trained.model, task.frozen_evaluation(), task.tokenizer), **task.judge(trained.model)}
    rows = [
        {
            "name": str(one),
            "metric": one.metric,
            "value": metrics[one.metric],
            "threshold": one.threshold,
            "met": one.met(metrics[one.metric]),
        }
        for one in criteria
    ]
    verdict = "PASS" if all(row["met"] for row in rows) else "FAIL"
    return {"run": trained.layout.run_id, "step": trained.step, "verdict": verdict, "metrics": metrics, "criteria": rows}


def _page(result: dict[str, Any], shown: Sequence[Shown]) -> str:
    metrics = result["metrics"]
    lines = [f"{result['run']} at update {result['step']}"]
    for name, value in metrics.items():
        if name.endswith("_cases") or name == "tokens":
            continue
        cases = metrics.get(f"{name}_cases")
        lines.append(f"  {name:<24}{figure(value):>10}" + (f"   of {cases:,.0f} held-out cases" if cases else ""))
    for case in shown:
        mark = "right" if case.answer == case.expected else f"wrong, it is {case.expected}"
        lines.append(f"  {case.prompt}{case.answer}   {mark}")
    for row in result["criteria"]:
        lines.append(f"  {row['name']}: {figure(row['value'])}  {'met' if row['met'] else 'NOT met'}")
    return "\n".join([*lines, result["verdict"]])


def figure(value: float) -> str:
    """Four decimals, and as many as it takes not to show 1 (or 0) for what is not quite 1 (or 0)."""
    return next(text for digits in range(4, 18) if (text := f"{value:.{digits}f}") and (float(text) in (0, 1)) <= (value in (0, 1)))
