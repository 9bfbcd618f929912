"""Which single change helps a small ternary model to learn English? Bits per byte after the same tokens.

    python benchmarks/tinystories_trials.py --data stories.txt [--tokens 5e6] [--width 128]
                                            [--only muon_lr_0.03 sub_norm]

Every trial is `bitnet train tinystories` with a few flags; the base has the variant's own settings (Muon,
linear warm-down). The trials run one after the other on one machine, over the same windows in the same order.
A trial that was measured before is not repeated: runs are kept in --runs-dir, results in
benchmarks/results/tinystories_trials.json. Each is a single run, so differences below 0.01 are noise.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import subprocess
import sys
from typing import Any

from bitnet.cli.registry import find_experiment
from hardware import where, write_results

TRIALS: dict[str, list[str]] = {
    "base": [],
    "adamw": ["--train.optimizer", "adamw", "--train.peak-lr", "0.0015"],
    "sub_norm": ["--model.sub-norm"],
    "relu2": ["--model.activation", "relu2"],
    "muon_lr_0.03": ["--train.muon-lr", "0.03"],
    "muon_lr_0.01": ["--train.muon-lr", "0.01"],
    "rate_0.0015": ["--train.peak-lr", "0.0015"],
    "two_stage": ["--train.schedule", "two_stage"],
    "batch_8": ["--batch-size", "8"],
    "batch_32": ["--batch-size", "32"],
    "unlikelihood_3": ["--train.stage2-unlikelihood", "3.0"],
    "full": ["--weights", "full"],
}
"""The flags of each trial. `full` is the control."""


def bitnet(*words: str) -> dict[str, Any]:
    """The JSON on the last line of a command."""
    done = subprocess.run(
        [sys.executable, "-m", "bitnet", *words, "--json"], stdout=subprocess.PIPE, text=True, check=True
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def trial(name: str, words: argparse.Namespace) -> dict[str, Any]:
    """Train and measure one trial. What was done before is skipped."""
    train = find_experiment("tinystories").variants[words.variant].config.train
    rows = next(
        (int(value) for flag, value in itertools.pairwise(TRIALS[name]) if flag == "--batch-size"),
        train.batch_size,
    )
    steps = math.ceil(words.tokens / (rows * train.seq_len))
    held_out = ["--validation", *words.validation] if words.validation else []
    run = f"trial_{words.variant}_{words.width or 'own'}_{steps}_{name}"
    bitnet(
        *("train", "tinystories", "--variant", words.variant, "--data", *words.data, *held_out),
        *("--num-steps", str(steps), "--allow-repeat", "--run-id", run, "--runs-dir", words.runs_dir),
        *("--train.eval-every", str(steps), "--train.sample-every", str(steps)),
        *shape(words.width),
        *TRIALS[name],
    )

    metrics = bitnet("evaluate", run, "--once", "--show", "0", "--runs-dir", words.runs_dir)["metrics"]
    kept = ("bits_per_byte", "nats_per_token", "known_words", "greedy_looping")
    tokens = steps * rows * train.seq_len
    return {
        "trial": name,
        "flags": " ".join(TRIALS[name]),
        "width": words.width,
        "tokens": tokens,
        **{key: metrics[key] for key in kept},
    }


def shape(width: int | None) -> list[str]:
    """Flags of a narrower model in the proportions of `quick`."""
    if width is None:
        return []
    heads = max(width // 64, 1)
    sizes = {
        "hidden-size": width,
        "num-heads": heads,
        "num-kv-heads": max(heads // 2, 1),
        "ffn-hidden-size": 3 * width,
    }
    return [word for name, size in sizes.items() for word in (f"--model.{name}", str(size))]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--tokens", type=float, default=5e6)
    parser.add_argument("--variant", default="quick")
    parser.add_argument(
        "--width", type=int, help="hidden size, where the variant's own is too slow for many trials"
    )
    parser.add_argument("--validation", nargs="+", default=[], help="held-out files")
    parser.add_argument("--only", nargs="+", choices=TRIALS, default=list(TRIALS))
    parser.add_argument("--runs-dir", default="runs")
    words = parser.parse_args()
    print(where())
    rows = []
    for name in words.only:
        rows.append(trial(name, words))
        row = rows[-1]
        print(
            f"{name:<16}{row['bits_per_byte']:.4f} bits/byte  {row['nats_per_token']:.4f} nats/token  known "
            f"{row['known_words']:.4f}",
            flush=True,
        )
        write_results("tinystories_trials", rows)


if __name__ == "__main__":
    main()
