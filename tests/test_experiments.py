"""What every experiment promises, checked over all of them; and that one file is enough to add another."""

from __future__ import annotations

import dataclasses
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bitnet.train.start as start
from bitnet.cli.registry import experiment_names, find_experiment
from bitnet.experiments.text_data import TextData
from bitnet.nn.transformer import BitNetTransformer
from bitnet.optim.optimizer import Optimizers
from bitnet.optim.schedule import Rates
from bitnet.optim.update import apply_update
from bitnet.run.layout import RunLayout
from bitnet.run.metrics import read_lines
from bitnet.train.config import RunConfig
from bitnet.train.experiment import Experiment
from bitnet.train.loop import StepReport, train_steps
from bitnet.train.objective import summed_loss
from conftest import Command, Result
from corpora import stories, write_txt

FROM_NOTHING = [name for name in experiment_names() if not find_experiment(name).starts_from_a_run]
"""Experiments that begin with random weights; the others have tests of their own
(tests/experiments/test_bitnut_sft.py)."""
VARIANTS = [(name, variant) for name in FROM_NOTHING for variant in find_experiment(name).variants]


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small corpus for the experiments on real text, and room for its shards."""
    folder = tmp_path_factory.mktemp("texts")
    write_txt(folder / "stories.txt", stories(400))
    return folder


def shrunk(experiment: Experiment, variant: str, folder: Path) -> RunConfig:
    """The variant with a model that a test can afford."""
    config = experiment.variants[variant].config
    if isinstance(config.data, TextData):
        few = {
            "held_out_one_in": 10,
            "max_documents": None,
            "allow_repeat": True,
            "judged_prompts": 12,
            "eval_sequences": 4,
        }
        config = dataclasses.replace(
            config,
            model=dataclasses.replace(config.model, vocab_size=320, max_seq_length=96),
            train=dataclasses.replace(config.train, seq_len=32, grad_accumulation_steps=1),
            data=dataclasses.replace(
                config.data, data=(str(folder / "stories.txt"),), cache_dir=str(folder), **few
            ),  # type: ignore[arg-type]
        )
    small = {"hidden_size": 48, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "ffn_hidden_size": 96}
    train = dataclasses.replace(config.train, batch_size=8, eval_cases=12)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **small), train=train)  # type: ignore[arg-type]


@pytest.fixture(params=VARIANTS, ids="-".join)
def case(request: pytest.FixtureRequest, corpus_folder: Path) -> tuple[Experiment, RunConfig]:
    experiment = find_experiment(request.param[0])
    return experiment, shrunk(experiment, request.param[1], corpus_folder)


@pytest.mark.slow
def test_same_seed_same_batches_and_another_seed_others(case: tuple[Experiment, RunConfig]) -> None:
    experiment, config = case
    numbers = np.arange(100, 108)
    first, second = (experiment.open(config).source.rows(numbers) for _ in range(2))
    assert all(
        torch.equal(a, b) for a, b in zip(first.tensors().values(), second.tensors().values(), strict=True)
    )
    other = experiment.open(
        dataclasses.replace(config, train=dataclasses.replace(config.train, seed=7))
    ).source.rows(numbers)
    assert not torch.equal(first.input_ids, other.input_ids)
    assert first.input_ids.shape == (8, config.train.seq_len)


@pytest.mark.slow
def test_frozen_evaluation_is_always_the_same_and_disjoint_from_training(
    case: tuple[Experiment, RunConfig],
) -> None:
    experiment, config = case
    task = experiment.open(config)
    first, second = task.frozen_evaluation(), experiment.open(config).frozen_evaluation()
    assert torch.equal(first[0].input_ids, second[0].input_ids)
    kept = {tuple(token for token in row if token) for batch in first for row in batch.input_ids.tolist()}
    trained = "\n" + "\n".join(
        task.tokenizer.decode(row) for row in task.source.rows(np.arange(2000)).input_ids.tolist()
    )
    assert not any("\n" + task.tokenizer.decode(row) in trained for row in kept)


def test_tokenizer_round_trips_and_stays_in_the_vocabulary(case: tuple[Experiment, RunConfig]) -> None:
    experiment, config = case
    task = experiment.open(config)
    assert task.tokenizer.vocab_size == config.model.vocab_size
    for prompt in task.prompts:
        ids = task.tokenizer.encode(prompt)
        assert task.tokenizer.decode(ids) == prompt
        assert max(ids) < config.model.vocab_size


@pytest.mark.slow
def test_thirty_updates_on_one_batch_lower_the_loss(case: tuple[Experiment, RunConfig]) -> None:
    experiment, config = case
    torch.manual_seed(0)
    batch = experiment.open(config).source.rows(np.arange(8))
    model = BitNetTransformer(config.model)
    optimizers = Optimizers(model, config.train.optimizer_config())
    losses = []
    for _ in range(30):
        loss = summed_loss(model(batch.input_ids), batch) / batch.loss_mask.sum()
        loss.backward()
        losses.append(float(loss.detach()))
        apply_update(model, optimizers, Rates(config.train.peak_lr, 0.0), loss=losses[-1], clip_norm=1.0)
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.slow
def test_judge_counts_its_cases_and_gives_what_the_criteria_ask_for(
    case: tuple[Experiment, RunConfig],
) -> None:
    experiment, config = case
    task = experiment.open(config)
    metrics = task.judge(BitNetTransformer(config.model), 12)
    assert any(name.endswith("_cases") for name in metrics)
    per_case = ("_rate", "_match", "_valid", "_kept", "parses", "right", "_looping", "soup")
    for name, value in metrics.items():
        if name.endswith("_cases"):
            # A model that has learned nothing may write no end of a sentence.
            assert value > 0 or name == "sentences_ended_cases", f"{name} counts nothing"
        elif name.endswith(per_case):
            assert 0 <= value <= 1
            assert metrics[f"{name}_cases"] <= 12
    for variant in experiment.variants.values():
        assert {criterion.metric for criterion in variant.criteria} <= metrics.keys() | {
            "nats_per_token",
            "bits_per_byte",
        }
    assert len(task.show(BitNetTransformer(config.model), 3)) == 3


SMALL = """
    --model.hidden-size 32 --model.num-layers 1 --model.num-heads 2 --model.num-kv-heads 1
    --model.ffn-hidden-size 48 --batch-size 4 --train.eval-cases 6 --num-steps 4 --train.warmup-steps 0
    --train.checkpoint-every 2 --train.eval-every 2 --train.probe-every 2 --train.sample-every 4
""".split()

SMALL_TEXT = """
    --model.vocab-size 320 --model.max-seq-length 96 --seq-len 32 --data.held-out-one-in 10
""".split()


@pytest.mark.slow
@pytest.mark.parametrize("name", FROM_NOTHING)
def test_training_leaves_a_valid_run_and_resumes_bit_for_bit(
    name: str, bitnet: Command, corpus_folder: Path, tmp_path: Path
) -> None:
    """Four updates in one go, and four with a stop after the second: equal weights and optimizer, and every
    file that a run has.
    """

    variant = find_experiment(name).default_variant("cpu")
    on_text = isinstance(find_experiment(name).variants[variant].config.data, TextData)
    own = (
        [*SMALL_TEXT, "--data", corpus_folder / "stories.txt", "--cache-dir", corpus_folder]
        if on_text
        else []
    )

    def train(runs: str) -> Result:
        words = ["--variant", variant, "--device", "cpu", *SMALL, *own]
        return bitnet("train", name, *words, "--run-id", "one", "--runs-dir", tmp_path / runs)

    def stopped_at_two(*words: Any, **options: Any) -> Iterator[StepReport]:
        for report in train_steps(*words, **options):
            if report.step == 2:
                signal.raise_signal(signal.SIGTERM)
            yield report

    assert train("whole").code == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(start, "train_steps", stopped_at_two)
        assert train("parts").code == 128 + signal.SIGTERM
    assert train("parts").code == 0
    whole, parts = (RunLayout(tmp_path / runs / "one") for runs in ("whole", "parts"))
    for file in ("model.safetensors", "optimizer.safetensors"):
        assert (whole.checkpoint(4) / file).read_bytes() == (parts.checkpoint(4) / file).read_bytes()
    for layout in (whole, parts):
        assert json.loads(layout.status.read_text())["state"] == "done"
        assert json.loads(layout.config.read_text())["experiment"] == name
        assert json.loads(layout.fingerprint.read_text())["tokenizer_vocab_size"] > 0
        assert [row["step"] for row in read_lines(layout.scalars).rows] == [1, 2, 3, 4]
        assert all(read_lines(path).rows for path in layout.line_files())
    assert bitnet("status", "one", "--runs-dir", tmp_path / "parts").code == 0


MINE = """
import dataclasses
from bitnet.experiments.arithmetic import QUICK, ArithmeticTask
from bitnet.train.experiment import Criterion, Experiment, Variant

CONFIG = dataclasses.replace(
    QUICK,
    model=dataclasses.replace(QUICK.model, hidden_size=32, num_layers=1, num_heads=2, num_kv_heads=1,
                              ffn_hidden_size=48),
    train=dataclasses.replace(QUICK.train, batch_size=4, total_steps=3, warmup_steps=0, eval_cases=8),
    data=dataclasses.replace(QUICK.data, max_operand=9),
)
experiment = Experiment(name="mine", label="1M", about="a test", open=ArithmeticTask,
                        variants={"quick": Variant(CONFIG, (Criterion("exact_match", at_least=0.0),),
                                                    "three updates")})
"""


@pytest.mark.slow
def test_experiment_in_a_file_of_its_own_trains_and_is_judged(bitnet: Command, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(MINE)
    trained = bitnet("train", file, "--device", "cpu", "--runs-dir", tmp_path / "runs", "--json")
    assert trained.code == 0, trained.err
    assert trained.json["run"].startswith("bitnet_1M_mine_")
    command = ("evaluate", trained.json["run"], "--runs-dir", tmp_path / "runs", "--check", "--json")
    judged = bitnet(*command, "--experiment", file)
    assert judged.code == 0, judged.err
    assert judged.json["verdict"] == "PASS"
    assert "--experiment mine.py" in bitnet(*command).err, (
        "what a run names is not executed; the message says how to name it"
    )


def test_file_without_an_experiment_is_refused(bitnet: Command, tmp_path: Path) -> None:
    file = tmp_path / "none.py"
    file.write_text("x = 1\n")
    assert "does not define" in bitnet("train", file).err
    file.write_text("1 / 0\n")
    assert "ZeroDivisionError" in bitnet("train", file).err
