"""Does a faster way to compute an update learn the same? The same experiment, seeds and data, way beside way.

    python benchmarks/learning.py arithmetic --variant quick --seeds 42 43 44
        --ways "train.input_gradient=float" "train.input_gradient=int8" [--threads 2] [--num-steps N]

Each way is one or more settings, separated by spaces. Each run is a `bitnet train` and a `bitnet evaluate`
of its own, one process after the other, way by way within a seed. All of it may take hours, so it can be
stopped at any time: the same command continues the run that it was in and does not repeat what is done. The
table gives the mean loss of the last 100 updates, the loss on held-out rows and the verdict for each seed,
then how far each way is from the first one, seed by seed, beside the standard deviation between seeds.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitnet.files import read_json
from bitnet.run.layout import RunLayout
from bitnet.run.metrics import last_line, read_lines
from hardware import place_of, where, write_results

CHOSEN = ("linear_product", "input_gradient", "weight_gradient", "gradient_dtype", "compiled")


@dataclass(frozen=True)
class Plan:
    """What all runs have in common. threads: of each process."""

    experiment: str
    variant: str
    runs_dir: Path
    threads: int
    num_steps: int | None
    more: Sequence[str]

    def run_of(self, way: str, seed: int) -> RunLayout:
        """The run of a way and a seed, whose name says what it is."""
        settings = re.sub(r"[^A-Za-z0-9.]+", "-", way.replace("train.", ""))
        return RunLayout(self.runs_dir / f"learning_{self.experiment}_{self.variant}_{seed}_{settings}")


def flags_of(way: str) -> list[str]:
    """`train.input_gradient=int8` as the flag that sets it. Raises SystemExit for anything else."""
    words = []
    for setting in way.split():
        name, equals, value = setting.partition("=")
        if not (equals and value and name.startswith(("train.", "model."))):
            raise SystemExit(f"{setting!r} is no setting; write it like train.input_gradient=int8")
        words += [f"--{name.replace('_', '-')}", value]
    return words


def measured(plan: Plan, way: str, seed: int) -> dict[str, Any]:
    """Train and judge one run, or what is left of it, and read its figures."""
    layout = plan.run_of(way, seed)
    words = ["--variant", plan.variant, "--seed", str(seed), *flags_of(way), *plan.more]
    if plan.num_steps is not None:
        words += ["--num-steps", str(plan.num_steps)]
    place = ["--runs-dir", str(plan.runs_dir)]
    bitnet(plan, "train", plan.experiment, *words, "--run-id", layout.run_id, *place)
    bitnet(plan, "evaluate", layout.run_id, "--once", "--show", "0", *place)
    return figures(layout, way, seed)


def bitnet(plan: Plan, *words: str) -> None:
    """One command, whose output is shown."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(plan.threads), "MKL_NUM_THREADS": str(plan.threads)}
    subprocess.run([sys.executable, "-m", "bitnet", *words], check=True, env=environment)


def figures(layout: RunLayout, way: str, seed: int) -> dict[str, Any]:
    """Losses in nats, verdict and speed of a finished run."""
    rates = [row["tokens_per_sec"] for row in read_lines(layout.scalars).rows]
    losses, verdict = last_line(layout.evaluations), read_json(layout.verdict)
    assert losses is not None, "every run is evaluated at its last update"
    facts = read_json(layout.provenance)
    return {
        "way": way,
        "seed": seed,
        "train_loss": losses["train_loss"],
        "eval_loss": losses["eval_loss"],
        "verdict": verdict["verdict"],
        "metrics": verdict["metrics"],
        "tokens_per_sec": statistics.median(rates),
        **{key: facts[key] for key in CHOSEN},
    }


def differences(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each way beside the first one: differences of equal seeds, and the spread of seeds within the first."""
    ways = list(dict.fromkeys(row["way"] for row in rows))
    by_seed = {way: {row["seed"]: row for row in rows if row["way"] == way} for way in ways}
    lines = []
    for key in ("train_loss", "eval_loss"):
        first = {seed: row[key] for seed, row in by_seed[ways[0]].items()}
        spread = statistics.pstdev(first.values())
        lines.append(f"{key}, {ways[0]}: mean {statistics.fmean(first.values()):.4f}, seeds +-{spread:.4f}")
        for way in ways[1:]:
            gaps = [row[key] - first[seed] for seed, row in by_seed[way].items()]
            shown = " ".join(f"{gap:+.4f}" for gap in gaps)
            lines.append(f"{key}, {way}: {statistics.fmean(gaps):+.4f} (by seed {shown})")
    return lines


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each run."""
    head = f"{'seed':<6}{'train loss':>11}{'eval loss':>11}  {'verdict':<9}{'tokens/s':>9}  way"
    return [head] + [
        f"{row['seed']:<6}{row['train_loss']:>11.4f}{row['eval_loss']:>11.4f}  {row['verdict']:<9}"
        f"{row['tokens_per_sec']:>9,.0f}  {row['way']}"
        for row in rows
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment")
    parser.add_argument("--variant", default="quick")
    parser.add_argument("--seeds", nargs="+", type=int, default=[42, 43, 44])
    parser.add_argument("--ways", nargs="+", required=True)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--num-steps", type=int, help="a shorter run of the same recipe")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    words, more = parser.parse_known_args()
    for way in words.ways:
        flags_of(way)

    plan = Plan(words.experiment, words.variant, words.runs_dir, words.threads, words.num_steps, more)
    rows: list[dict[str, Any]] = []
    for seed in words.seeds:
        for way in words.ways:
            rows.append(measured(plan, way, seed))
            path = write_results(f"learning_{words.experiment}_{words.variant}", rows, threads=words.threads)
    print(place_of({**where(), "threads": words.threads}))
    print("\n".join([*table(rows), *differences(rows)]))
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
