"""`bitnet evaluate RUN`: measure the success criteria on held-out cases; with --data, the loss on a text."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from bitnet.allocator import keep_freed_memory
from bitnet.bounds import MOST_SHOWN, within
from bitnet.cli.flags import parse
from bitnet.cli.foreign import refuse_foreign_places
from bitnet.cli.model import ModelFlags, load_model
from bitnet.cli.registry import config_of_run, find_variant
from bitnet.errors import BitnetError, ConfigError, DataError
from bitnet.units import figure

if TYPE_CHECKING:
    from bitnet.train.config import RunConfig
    from bitnet.train.experiment import Shown, Task
    from bitnet.trained_model import TrainedModel

TEXT_ROWS = 16  # rows of a batch when a text's loss is measured


@dataclass(frozen=True, kw_only=True)
class EvaluateFlags(ModelFlags):
    """Measure a run against its success criteria, or the loss on a text."""

    check: bool = False
    """Exit with code 1 unless every criterion is met."""
    show: int = 10
    """How many held-out cases to show with the model's answers."""
    once: bool = False
    """Where this checkpoint was measured before, show that result instead of measuring again."""
    data: tuple[str, ...] = ()
    """Files, folders or patterns: measure the loss on their text instead of the criteria."""
    column: str = "text"
    """Column with the text, of --data."""
    experiment: Path | None = None
    """Your own experiment file that the run was trained from; what only the run names is not executed."""
    trust: bool = False
    """Read and write what a run of somebody else names outside its folder."""


def main(arguments: Sequence[str]) -> int:
    """Print metrics, criteria and the verdict."""
    flags = parse(EvaluateFlags, arguments, "evaluate")
    within("--show", flags.show, 0, MOST_SHOWN)
    trained = load_model(flags)
    out = sys.stderr if flags.json else sys.stdout
    experiment, variant, config = config_of_run(trained.layout, flags.experiment)
    if flags.data:
        keep_freed_memory()
        return _text_loss(trained, config, flags, out)
    refuse_foreign_places(trained.layout, config, trust=flags.trust)
    task = experiment.open(config)
    check_tokenizer(trained, task)
    keep_freed_memory()
    result = measured_before(trained) if flags.once else None
    if result is None:
        started = time.perf_counter()
        result = judge(trained, task, find_variant(experiment, variant).criteria)
        result["seconds"] = round(time.perf_counter() - started, 2)
        keep(trained, result)
    print(_page(result, task.show(trained.model, flags.show) if flags.show > 0 else []), file=out)
    if flags.json:
        print(json.dumps(result))
    return 1 if flags.check and result["verdict"] == "FAIL" else 0


def keep(trained: TrainedModel, result: dict[str, Any]) -> None:
    """Store the result. A disk that refuses it is named in one line, and the result is shown all the same."""
    from bitnet.files import write_json

    try:
        write_json(trained.layout.verdict, result)
    except OSError as error:
        print(
            f"the result is not kept: {trained.layout.verdict} cannot be written ({error.strerror})",
            file=sys.stderr,
        )


def measured_before(trained: TrainedModel) -> dict[str, Any] | None:
    """The stored result, if it is of this checkpoint."""
    from bitnet.run.records import read_verdict

    try:
        stored = read_verdict(trained.layout)
    except BitnetError:  # not there yet, or damaged: measuring again puts it right
        return None
    return stored if stored["step"] == trained.step else None


def check_tokenizer(trained: TrainedModel, task: Task) -> None:
    """Raise DataError where the experiment's data now has another tokenizer than the run was trained with."""
    then, now = (
        tokenizer.describe()["tokenizer_sha256"] for tokenizer in (trained.tokenizer, task.tokenizer)
    )
    if then != now:
        raise DataError(
            f"the data of {trained.layout.run_id} now has another tokenizer (sha256 {now[:12]}, the run's is "
            f"{then[:12]}); restore the files and the cache that it was trained from, or measure a text with "
            "--data"
        )


def _text_loss(trained: TrainedModel, config: RunConfig, flags: EvaluateFlags, out: TextIO) -> int:
    """Loss on the documents of --data, every token of them. Records that cannot be used are counted."""
    from bitnet.corpus.documents import LocalFiles, Skipped, usable_texts
    from bitnet.data.windows import text_batches
    from bitnet.evaluate.loss import held_out_loss

    if flags.check:
        raise ConfigError(
            "--check asks for the success criteria, which are measured without --data; give one of them"
        )
    skipped = Skipped()
    texts = usable_texts(LocalFiles(flags.data, flags.column), skipped)
    batches = text_batches(texts, trained.tokenizer, seq_len=config.train.seq_len, batch_size=TEXT_ROWS)
    metrics = held_out_loss(trained.model, batches, trained.tokenizer)
    if skipped:
        print(f"left out: {skipped}", file=sys.stderr)

    run, files = trained.layout.run_id, ", ".join(flags.data)
    print(f"{run} at step {trained.step}, on {files} ({metrics['tokens']:,.0f} tokens)", file=out)
    print(f"  computed by {trained.engine}", file=out)
    for name in ("nats_per_token", "bits_per_byte"):
        print(f"  {name:<24}{figure(metrics[name]):>10}", file=out)
    result = {
        "run": run,
        "step": trained.step,
        "data": list(flags.data),
        "metrics": metrics,
        "engine": trained.engine,
    }
    if flags.json:
        print(json.dumps(result))
    return 0


def judge(trained: TrainedModel, task: Task, criteria: Sequence[Any]) -> dict[str, Any]:
    """run, step, verdict, metrics and criteria, as the command line's contract has them."""
    from bitnet.evaluate.loss import held_out_loss

    loss = held_out_loss(trained.model, task.frozen_evaluation(), task.tokenizer)
    metrics = {**loss, **task.judge(trained.model)}
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
    result = {"run": trained.layout.run_id, "step": trained.step, "verdict": verdict}
    return {**result, "metrics": metrics, "criteria": rows, "engine": trained.engine}


def _page(result: dict[str, Any], shown: Sequence[Shown]) -> str:
    metrics = result["metrics"]
    lines = [f"{result['run']} at step {result['step']}"]
    if "engine" in result:  # a stored result may be older than the packed engine
        lines.append(f"  computed by {result['engine']}")
    for name, value in metrics.items():
        if name.endswith("_cases") or name == "tokens":
            continue
        cases = metrics.get(f"{name}_cases")
        of_cases = f"   of {cases:,.0f} held-out cases" if cases else ""
        lines.append(f"  {name:<24}{figure(value):>10}{of_cases}")
    for case in shown:
        if case.expected is None:
            lines.append(f"  {' '.join(case.prompt.split())} | {' '.join(case.answer.split())}")
            continue
        mark = "right" if case.answer == case.expected else f"wrong, it is {case.expected}"
        lines.append(f"  {case.prompt}{case.answer}   {mark}")
    for row in result["criteria"]:
        lines.append(f"  {row['name']}: {figure(row['value'])}  {'met' if row['met'] else 'NOT met'}")
    return "\n".join([*lines, result["verdict"]])
