"""From a base run to one that converses, through the real commands, with models of a few thousand
parameters.
"""

from __future__ import annotations

import json
import math
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from bitnet import load
from bitnet.cli.registry import config_of_run
from bitnet.experiments.bitnut_sft import ConversationTask
from bitnet.run.checkpoint import load_checkpoint
from bitnet.run.layout import RunLayout
from conftest import Command, Result, after_update, run_command, terminate
from corpora import stories, write_txt

pytestmark = pytest.mark.slow


SHAPE = [
    "--model.hidden-size",
    32,
    "--model.num-layers",
    1,
    "--model.num-heads",
    2,
    "--model.num-kv-heads",
    1,
    "--model.ffn-hidden-size",
    48,
    "--model.vocab-size",
    320,
    "--model.max-seq-length",
    512,
]
SHORT = [
    "--device",
    "cpu",
    "--train.warmup-steps",
    0,
    "--batch-size",
    4,
    "--train.eval-cases",
    2,
    "--train.checkpoint-every",
    2,
    "--train.eval-every",
    2,
    "--train.probe-every",
    2,
    "--train.sample-every",
    4,
]
JUDGE = ["--data.eval-conversations", 3, "--data.judged-prompts", 6, "--data.answer-tokens", 12]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base run of two updates, and conversations about four topics, one of them held out."""
    folder = tmp_path_factory.mktemp("sft")
    file = write_txt(folder / "tales.txt", stories(200))
    (folder / "topics.txt").write_text("rain\nsnow\nthe moon\ngardening\n")
    for words in (
        [
            "train",
            "bitnut",
            "--variant",
            "quick",
            "--data",
            file,
            "--cache-dir",
            folder / "cache",
            *SHAPE,
            *SHORT,
            "--num-steps",
            2,
            "--seq-len",
            64,
            "--data.held-out-one-in",
            10,
            "--data.judged-prompts",
            8,
            "--run-id",
            "base",
            "--runs-dir",
            folder / "runs",
        ],
        [
            "voice",
            "prompts",
            "--topics",
            folder / "topics.txt",
            "--teacher",
            "rules",
            "--batches",
            1,
            "--per-batch",
            4,
            "--out",
            folder / "p",
        ],
        [
            "voice",
            "answers",
            "--prompts",
            folder / "p",
            "--teacher",
            "rules",
            "--pairs",
            "--out",
            folder / "a",
        ],
    ):
        done = run_command(*words)
        assert done.code == 0, done.err
    return folder


def tune(place: Path, runs: Path, *words: Any) -> Result:
    """Four updates of fine-tuning from a copy of the base run."""
    if not (runs / "base").exists():
        shutil.copytree(place / "runs" / "base", runs / "base")
    command = [
        "train",
        "bitnut_sft",
        "--variant",
        "quick",
        "--from",
        "base",
        "--data",
        place / "a",
        *SHORT,
        *JUDGE,
        "--num-steps",
        4,
    ]
    return run_command(*command, "--seq-len", 400, "--run-id", "tuned", "--runs-dir", runs, *words)


@pytest.fixture(scope="module")
def _tuned(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("tuned")
    assert tune(place, runs).code == 0
    return runs


@pytest.fixture
def tuned(_tuned: Path, tmp_path: Path) -> Path:
    """A folder of the test's own with the base run, and the run `tuned` that began from it."""
    return Path(shutil.copytree(_tuned, tmp_path, dirs_exist_ok=True))


def test_it_begins_with_the_weights_of_the_run_and_then_converses(
    place: Path, tmp_path: Path, bitnet: Command
) -> None:
    done = tune(place, tmp_path)
    assert done.code == 0, done.err
    assert "beginning with the weights of" in done.out
    base, tuned = (RunLayout(tmp_path / name) for name in ("base", "tuned"))
    before, after = load_checkpoint(base.checkpoint(2)), load_checkpoint(tuned.checkpoint(0))
    assert all(torch.equal(before.model[name], tensor) for name, tensor in after.model.items())
    assert json.loads(tuned.config.read_text())["data"]["speaker"] == "bitnut"
    assert (
        load("tuned", runs_dir=tmp_path).tokenizer.describe()
        == load("base", runs_dir=tmp_path).tokenizer.describe()
    )
    said = bitnet(
        "chat", "tuned", "-p", "What is rain?", "--max-new-tokens", 8, "--json", "--runs-dir", tmp_path
    )
    assert said.code == 0, said.err
    assert said.json["ended"] in (True, False)


def test_the_judge_measures_what_success_is(place: Path, tuned: Path, bitnet: Command) -> None:
    done = bitnet("evaluate", "tuned", "--runs-dir", tuned, "--json")
    assert done.code == 0, done.err
    metrics = done.json["metrics"]
    held_out = 4  # prompts on the one topic held out
    for name in ("answers_ended", "in_voice", "mention_topic", "distinct_answers"):
        assert 0 <= metrics[name] <= 1
        assert metrics[f"{name}_cases"] == held_out
    assert metrics["forgetting"] == pytest.approx(metrics["text_nats"] - metrics["text_nats_before"])
    assert {row["metric"] for row in done.json["criteria"]} == {"answers_ended", "in_voice", "forgetting"}
    task = ConversationTask(config_of_run(RunLayout(tuned / "tuned"))[2])
    assert task.judge(load("base", runs_dir=tuned).model)["forgetting"] == 0


def test_training_never_sees_a_held_out_topic(place: Path, tuned: Path) -> None:
    task = ConversationTask(config_of_run(RunLayout(tuned / "tuned"))[2])
    import numpy as np

    text = task.tokenizer.decode(task.source.rows(np.arange(200)).input_ids.flatten().tolist())
    assert "snow" in text
    assert "gardening" not in text
    assert {one.topic for one in task.found.held_out} == {"gardening"}
    assert all("human:" in prompt for prompt in task.prompts)


def test_a_stopped_run_goes_on_bit_for_bit(place: Path, tuned: Path) -> None:
    whole = (tuned / "tuned").rename(tuned / "whole")
    with after_update(2, terminate):
        assert tune(place, tuned).code == 128 + signal.SIGTERM
    assert tune(place, tuned).code == 0
    for file in ("model.safetensors", "optimizer.safetensors"):
        path = Path("checkpoints") / "step_000004" / file
        assert (whole / path).read_bytes() == (tuned / "tuned" / path).read_bytes()


def test_what_does_not_fit_is_refused(place: Path, tmp_path: Path, bitnet: Command) -> None:
    other = tmp_path / "other-tokenizer"
    write_txt(tmp_path / "more.txt", [text.upper() for text in stories(150)])
    assert (
        bitnet(
            "tokenizer", "train", "--data", tmp_path / "more.txt", "--vocab-size", 300, "--out", other
        ).code
        == 0
    )
    answer = json.dumps({"prompt": "Why?", "answer": "Woof!"}) + "\n"
    (tmp_path / "all.jsonl").write_text(answer)
    (tmp_path / "broken.jsonl").write_text(answer * 5 + '{"prompt": "And?"}\n')
    for words, message in (
        (["--data.tokenizer", other], "another tokenizer"),
        (["--data", tmp_path / "none"], "make it with: bitnet voice answers"),
        (["--data", tmp_path / "all.jsonl"], "holds no topic out"),
        (["--data", tmp_path / "broken.jsonl"], "1 of 6 lines"),
        (["--from", "nobody"], "there is no run 'nobody'"),
        (["--data.other-share", "1.5"], "data.other_share is 1.5"),
    ):
        done = tune(place, tmp_path, *words)
        assert done.code == 2, (words, done.out)
        assert message in done.err, done.err
        assert done.err.count("\n") == 1
    alone = bitnet("train", "bitnut_sft", "--variant", "quick", "--device", "cpu", "--runs-dir", tmp_path)
    assert alone.code == 2
    assert "--from RUN --data DIR" in alone.err


def prefer(place: Path, runs: Path, *words: Any) -> Result:
    """Four updates of preference optimisation from the fine-tuned run."""
    command = [
        "train",
        "bitnut_dpo",
        "--variant",
        "quick",
        "--from",
        "tuned",
        "--data",
        place / "a",
        *SHORT,
        *JUDGE,
        "--num-steps",
        4,
    ]
    return run_command(*command, "--seq-len", 400, "--run-id", "preferring", "--runs-dir", runs, *words)


def test_preference_begins_at_ln_2_and_is_judged_like_fine_tuning(
    place: Path, tuned: Path, bitnet: Command
) -> None:
    done = prefer(place, tuned, "--train.peak-lr", "0.001")
    assert done.code == 0, done.err
    losses = [
        json.loads(line)["loss"]
        for line in (tuned / "preferring" / "metrics" / "scalars.jsonl").read_text().splitlines()
    ]
    # The reference is computed by the plain modules and training by fused ones: a half-way code may differ.
    assert losses[0] == pytest.approx(math.log(2), abs=1e-3)
    assert losses[-1] < losses[0]
    described = json.loads((tuned / "preferring" / "meta" / "config.json").read_text())
    assert (described["training"]["objective"], described["training"]["preference_beta"]) == (
        "preference",
        0.1,
    )
    judged = bitnet("evaluate", "preferring", "--runs-dir", tuned, "--json")
    assert judged.code == 0, judged.err
    metrics = judged.json["metrics"]
    fine_tuned = bitnet("evaluate", "tuned", "--runs-dir", tuned, "--json").json["metrics"]
    assert fine_tuned.keys() < metrics.keys()
    assert metrics["text_nats_before"] == fine_tuned["text_nats"]
    assert metrics["preferred_cases"] == 4
    assert 0 <= metrics["preferred"] <= 1


def test_neither_is_taken_for_broken(place: Path, tuned: Path, bitnet: Command) -> None:
    """Low rates, another objective, old text mixed in and several texts to a row are no faults; four updates
    are too few, and no more.
    """
    assert prefer(place, tuned).code == 0
    for run in ("tuned", "preferring"):
        found = bitnet("diagnose", run, "--json", "--device", "cpu", "--runs-dir", tuned)
        failed = {check["name"] for check in found.json["checks"] if not check["ok"]}
        assert found.json["suspect"] in {"none", "training"}, failed
        assert not failed & {
            "peak learning rate",
            "one batch can be learned by heart",
            "held-out loss is not far below the training loss",
        }


def test_a_stopped_preference_goes_on_bit_for_bit(place: Path, tuned: Path) -> None:
    assert prefer(place, tuned).code == 0
    whole = (tuned / "preferring").rename(tuned / "whole")
    with after_update(2, terminate):
        assert prefer(place, tuned).code == 128 + signal.SIGTERM
    assert prefer(place, tuned).code == 0
    path = Path("checkpoints") / "step_000004" / "model.safetensors"
    assert (whole / path).read_bytes() == (tuned / "preferring" / path).read_bytes()


def test_preferences_need_pairs(place: Path, tuned: Path) -> None:
    without = tuned / "without"
    shutil.copytree(place / "a", without)
    (without / "pairs.jsonl").unlink()
    for words, message in (
        (["--data", without], "bitnet voice answers --pairs"),
        (["--data", place / "a" / "answers.jsonl"], "preferences need the folder"),
        (["--batch-size", 3], "train.batch_size is 3"),
        (["--seq-len", 5], "fits a row of 5 tokens"),
    ):
        done = prefer(place, tuned, *words)
        assert done.code == 2, (words, done.out)
        assert message in done.err, done.err
        assert done.err.count("\n") == 1
