"""Small runs and small corpora that an examination is given."""

from __future__ import annotations

import contextlib
import io
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bitnet.cli.main import main
from conftest import after_update, terminate
from corpora import stories as written
from corpora import write_txt
from planted.fault import PLAIN, TINY


def succeed(*words: str, code: int = 0) -> None:
    """Run one command without its output."""
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(list(words)) == code


def small_run(folder: Path, *more: str) -> list[str]:
    """Train a tiny run, judge nothing, and return the words that diagnose it."""
    every = """
        --batch-size 16 --train.eval-cases 12 --train.eval-every 20 --train.checkpoint-every 20
        --train.sample-every 60 --train.probe-every 20
    """.split()
    steps = [] if "--num-steps" in more else ["--num-steps", "60"]
    runs = ["--runs-dir", str(folder / "runs")]

    succeed("train", *TINY, *every, *steps, *more, "--run-id", "one", *runs)
    return ["one", *runs, "--device", "cpu"]


def rewrite_scalars(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Change every row of the metrics of the run `one`."""
    path = folder / "runs" / "one" / "metrics" / "scalars.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(change(row)) + "\n" for row in rows))


def unfinished_run(folder: Path, *more: str) -> list[str]:
    """A run that was stopped after 40 of its updates."""
    runs = ["--runs-dir", str(folder / "runs")]
    every = "--run-id one --batch-size 16 --train.eval-every 20 --train.eval-cases 12".split()

    with after_update(40, terminate):
        succeed("train", *TINY, *runs, *every, *more, code=128 + signal.SIGTERM)
    return ["one", *runs, "--device", "cpu"]


def unfinished_in_bf16(folder: Path) -> list[str]:
    """The same run in bfloat16 by the plain product, with two micro-batches an update."""
    flags = "--train.precision bf16 --train.product float --train.grad-accumulation-steps 2"
    return unfinished_run(folder, *flags.split())


def stories(folder: Path) -> list[str]:
    """Words that examine the story experiment on a small corpus made here."""
    write_txt(folder / "stories.txt", written(600))
    flags = """
        --model.vocab-size 320 --model.max-seq-length 96 --seq-len 64 --data.held-out-one-in 10
        --allow-repeat --data.judged-prompts 12 --train.compile off
    """.split()
    corpus = ["--data", str(folder / "stories.txt"), "--cache-dir", str(folder)]
    return ["tinystories", "--variant", "quick", *PLAIN, *corpus, *flags]


def conversations(folder: Path, objective: str) -> list[str]:
    """Words that examine fine-tuning, or preference, of a small run on conversations made here."""
    topics, prompts, answers = (str(folder / name) for name in ("topics.txt", "p", "a"))
    Path(topics).write_text("rain\nsnow\nthe moon\ngardening\n")
    runs = ["--runs-dir", str(folder / "runs"), "--device", "cpu"]
    rules = ["--teacher", "rules"]

    short = "--model.max-seq-length 512 --num-steps 4 --batch-size 2 --run-id base".split()
    succeed("train", *stories(folder), *runs, *short)
    some = ["--batches", "1", "--per-batch", "4"]
    succeed("voice", "prompts", "--topics", topics, *rules, *some, "--out", prompts)
    succeed("voice", "answers", "--prompts", prompts, *rules, "--pairs", "--out", answers)

    flags = """
        --variant quick --from base --data.eval-conversations 3 --data.judged-prompts 6
        --data.answer-tokens 12 --seq-len 400 --batch-size 4
    """.split()
    return [objective, "--data", answers, *runs, *flags]


def fine_tuning(folder: Path) -> list[str]:
    """Words that examine fine-tuning of a small run."""
    return conversations(folder, "bitnut_sft")


def preference(folder: Path) -> list[str]:
    """Words that examine training on preferences of a small run."""
    return conversations(folder, "bitnut_dpo")
