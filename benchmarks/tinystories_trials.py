"""What makes a small ternary model learn English faster? One change at a time, the same tokens, bits per byte on held-out text.

    python benchmarks/tinystories_trials.py --data stories.txt [--tokens 5e6] [--variant quick] [--only muon_lr_0.03 sub_norm]

Every trial is `bitnet train tinystories` with a few flags; the base is the variant's own recipe (Muon, linear warm-down). They run one
after the other on one machine, over the same windows in the same order. A trial that was measured before is not repeated: runs are kept
in --runs-dir, results in benchmarks/results/tinystories_trials.json. Single runs: read differences below 0.01 as noise.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from typing import Any

from bitnet.cli.catalogue import find_experiment
from hardware import where, write_results

TRIALS: dict[str, list[str]] = {
    "base": [],
    "adamw": ["--train.optimizer", "adamw", "--train.peak-lr", "0.0015"],
    "sub_norm": ["--model.sub-norm", "True"],
    "relu2": ["--model.activation", "relu2"],
    "muon_lr_0.03": ["--train.muon-lr", "0.03"],
    "muon_lr_0.01": ["--train.muon-lr", "0.01"],
    "rate_0.0015": ["--train.peak-lr", "0.0015"],
    "two_stage": ["--train.schedule", "two_stage"],
    "full": ["--weights", "full"],
}
"""full: the control, not a trial."""


def bitnet(*words: str) -> dict[str, Any]:
    """The JSON on the last line of a command."""
    done = subprocess.run([sys.executable, "-m", "bitnet", *words, "--json"], stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def trial(name: str, words: argparse.Namespace) -> dict[str, Any]:
    """Train and measure one; both are skipped where they were done."""
    train = find_experiment("tinystories").variants[words.variant].config.train
    steps = math.ceil(words.tokens / train.tokens_per_step)
    run = f"trial_{words.variant}_{steps}_{name}"
    bitnet("train", "tinystories", "--variant", words.variant, "--data", *words.data, "--num-steps", str(steps), "--allow-repeat",
           "--train.eval-every", str(steps), "--train.sample-every", str(steps), "--run-id", run, "--runs-dir", words.runs_dir,
           *TRIALS[name])  # fmt: skip
    metrics = bitnet("evaluate", run, "--once", "--show", "0", "--runs-dir", words.runs_dir)["metrics"]
    kept = ("bits_per_byte", "nats_per_token", "known_words", "greedy_looping")
    return {"trial": name, "flags": " ".join(TRIALS[name]), "tokens": steps * train.tokens_per_step, **{key: metrics[key] for key in kept}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--tokens", type=float, default=5e6)
    parser.add_argument("--variant", default="quick")
    parser.add_argument("--only", nargs="+", choices=TRIALS, default=list(TRIALS))
    parser.add_argument("--runs-dir", default="runs")
    words = parser.parse_args()
    print(where())
    rows = []
    for name in words.only:
        rows.append(trial(name, words))
        row = rows[-1]
        print(
            f"{name:<16}{row['bits_per_byte']:.4f} bits/byte  {row['nats_per_token']:.4f} nats/token  known {row['known_words']:.4f}",
            flush=True,
        )
        write_results("tinystories_trials", rows)


if __name__ == "__main__":
    main()
