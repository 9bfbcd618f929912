"""How runs begin, continue and are refused; which path multiplies."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bitnet.experiments.arithmetic import QUICK, ArithmeticTask
from bitnet.nn.config import BitNetConfig
from bitnet.nn.transformer import BitNetTransformer
from bitnet.optim.optimizer import Optimizers
from bitnet.run.layout import RunLayout
from bitnet.run.metrics import read_lines
from bitnet.train.device import choose_product
from bitnet.train.loop import train_steps
from conftest import TINY_MODEL, TINY_TRAIN, Command


def test_same_command_without_an_id_continues_the_unfinished_run_then_begins_anew(
    bitnet: Command, tmp_path: Path
) -> None:
    first = bitnet(*TINY_TRAIN, "--runs-dir", tmp_path, "--num-steps", 3, "--json").json
    status = tmp_path / first["run"] / "status.json"
    status.write_text(json.dumps({**json.loads(status.read_text()), "state": "stopped"}))
    assert bitnet(*TINY_TRAIN, "--runs-dir", tmp_path, "--num-steps", 3, "--json").json["run"] == first["run"]
    assert bitnet(*TINY_TRAIN, "--runs-dir", tmp_path, "--num-steps", 3, "--json").json["run"] != first["run"]
    assert first["run"].startswith("bitnet_10K_arithmetic_")


def test_a_run_from_before_a_setting_existed_continues_where_the_setting_is_at_its_default(
    bitnet: Command, tmp_path: Path
) -> None:
    words = [*TINY_TRAIN, "--runs-dir", tmp_path, "--num-steps", 2, "--run-id", "old"]
    assert bitnet(*words).code == 0
    config = RunLayout(tmp_path / "old").config
    stored = json.loads(config.read_text())
    del stored["training"]["stage1_unlikelihood"], stored["model"]["sub_norm"]
    config.write_text(json.dumps(stored))
    RunLayout(tmp_path / "old").manifest.unlink()  # which such a run has none of
    assert "already done" in bitnet(*words).out
    changed = bitnet(*words, "--train.stage1-unlikelihood", 0.5)
    assert changed.code == 2
    assert "training.stage1_unlikelihood: 0.0 -> 0.5" in changed.err


def test_finished_run_says_already_done(bitnet: Command, runs: Path) -> None:
    before = (runs / "tiny" / "metrics" / "scalars.jsonl").read_bytes()
    result = bitnet(
        *TINY_TRAIN, "--num-steps", 8, "--train.checkpoint-every", 3, "--run-id", "tiny", "--runs-dir", runs
    )
    assert result.code == 0
    assert "already done" in result.out
    assert (runs / "tiny" / "metrics" / "scalars.jsonl").read_bytes() == before


def test_must_and_never_are_refused_where_they_cannot_be(bitnet: Command, runs: Path) -> None:
    must = bitnet(*TINY_TRAIN, "--run-id", "new", "--resume", "must", "--runs-dir", runs)
    assert must.code == 2
    assert "to resume" in must.err
    never = bitnet(
        *TINY_TRAIN,
        "--num-steps",
        8,
        "--train.checkpoint-every",
        3,
        "--run-id",
        "tiny",
        "--resume",
        "never",
        "--runs-dir",
        runs,
    )
    assert never.code == 2
    assert "exists" in never.err
    assert not (runs / "new").exists()


def test_several_processes_are_refused_before_anything_is_written(
    bitnet: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients are not exchanged between processes, so under torchrun each would train a model of its
    own.
    """
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    result = bitnet(*TINY_TRAIN, "--num-steps", 1, "--runs-dir", tmp_path / "runs")
    assert result.code == 2
    assert "process 1 of 2" in result.err
    assert len(result.err.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()
    monkeypatch.setenv("WORLD_SIZE", "two")
    assert (
        "must be whole numbers" in bitnet(*TINY_TRAIN, "--num-steps", 1, "--runs-dir", tmp_path / "runs").err
    )
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    assert bitnet(*TINY_TRAIN, "--num-steps", 1, "--runs-dir", tmp_path / "runs").code == 0


def test_second_process_on_a_run_is_refused(bitnet: Command, tmp_path: Path) -> None:
    (tmp_path / "busy").mkdir()
    with RunLayout(tmp_path / "busy").lock.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = bitnet(*TINY_TRAIN, "--run-id", "busy", "--runs-dir", tmp_path)
    assert result.code == 2
    assert "another process" in result.err


def test_dry_run_prints_the_configuration_and_writes_nothing(bitnet: Command, tmp_path: Path) -> None:
    result = bitnet(*TINY_TRAIN, "--runs-dir", tmp_path / "none", "--dry-run", "--json")
    assert result.code == 0
    assert result.json["model"]["hidden_size"] == 32
    assert result.json["training"]["batch_size"] == 8
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_control_has_full_weights_and_activations_on_the_same_batches(
    bitnet: Command, tmp_path: Path
) -> None:
    assert (
        bitnet(
            *TINY_TRAIN, "--weights", "full", "--num-steps", 2, "--run-id", "c", "--runs-dir", tmp_path
        ).code
        == 0
    )
    model = json.loads((tmp_path / "c" / "meta" / "config.json").read_text())["model"]
    assert (model["weights"], model["activations"]) == ("full", "full")
    ternary, full = (
        ArithmeticTask(dataclasses.replace(QUICK, model=dataclasses.replace(QUICK.model, weights=w)))
        for w in ("ternary", "full")
    )
    numbers = torch.arange(20).numpy()
    assert torch.equal(ternary.source.rows(numbers).input_ids, full.source.rows(numbers).input_ids)


@pytest.mark.slow
@pytest.mark.parametrize("product", ["float", "int8", "packed"])
def test_forced_product_is_used_and_recorded(bitnet: Command, tmp_path: Path, product: str) -> None:
    assert (
        bitnet(
            *TINY_TRAIN, "--train.product", product, "--num-steps", 2, "--run-id", "p", "--runs-dir", tmp_path
        ).code
        == 0
    )
    assert json.loads((tmp_path / "p" / "meta" / "provenance.json").read_text())["linear_product"] == product


def test_automatic_product_is_what_the_processor_does_best(bitnet: Command, runs: Path) -> None:
    facts = json.loads((runs / "tiny" / "meta" / "provenance.json").read_text())
    assert facts["linear_product"] == choose_product(QUICK.train, torch.device("cpu"), {})
    assert facts["input_gradient"] == "float"


@pytest.mark.slow
def test_all_products_learn_the_same(bitnet: Command, tmp_path: Path) -> None:
    losses = {}
    for product in ("float", "int8", "packed"):
        assert (
            bitnet(
                *TINY_TRAIN,
                "--train.product",
                product,
                "--num-steps",
                4,
                "--run-id",
                product,
                "--runs-dir",
                tmp_path,
            ).code
            == 0
        )
        losses[product] = [
            row["loss"] for row in read_lines(tmp_path / product / "metrics" / "scalars.jsonl").rows
        ]
    assert losses["float"] == pytest.approx(losses["int8"], rel=1e-3)
    assert losses["int8"] == losses["packed"]


def test_compiler_that_fails_is_reported_and_training_goes_on(
    bitnet: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(model: object, **options: object) -> object:
        def run(*args: object, **options: object) -> None:
            raise RuntimeError("no compiler here\nand a long trace")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    result = bitnet(
        *TINY_TRAIN, "--train.compile", "on", "--num-steps", 2, "--run-id", "c", "--runs-dir", tmp_path
    )
    assert result.code == 0
    assert "torch.compile failed (RuntimeError: no compiler here); going on without it" in result.out


@pytest.mark.slow
def test_accumulated_micro_batches_equal_one_batch() -> None:
    """The mean is over the scored tokens of the whole update, however they fall into micro-batches."""
    model_config = BitNetConfig(
        vocab_size=32,
        hidden_size=32,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        ffn_hidden_size=48,
        max_seq_length=16,
    )
    reports = []
    for size, accumulation in ((8, 1), (2, 4)):
        train = dataclasses.replace(
            QUICK.train, batch_size=size, grad_accumulation_steps=accumulation, total_steps=3, warmup_steps=0
        )
        config = dataclasses.replace(QUICK, model=model_config, train=train)
        torch.manual_seed(0)
        model = BitNetTransformer(model_config)
        optimizers = Optimizers(model, train.optimizer_config())
        reports.append(list(train_steps(model, model, ArithmeticTask(config).source, optimizers, train)))
    for one, four in zip(*reports, strict=True):
        assert four.loss == pytest.approx(one.loss, rel=1e-4)
        assert four.grad_norm == pytest.approx(one.grad_norm, rel=2e-3)
        assert four.tokens_seen == one.tokens_seen


@pytest.mark.slow
def test_terminal_gets_a_line_that_rewrites_itself(tmp_path: Path) -> None:
    parent, child = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "bitnet",
        *TINY_TRAIN[:8],
        *TINY_MODEL,
        "--num-steps",
        "3",
        "--runs-dir",
        str(tmp_path),
    ]
    process = subprocess.Popen(
        command, stdout=child, stderr=subprocess.DEVNULL, env={**os.environ, "COLUMNS": "90"}
    )
    os.close(child)
    shown = b""
    try:
        while chunk := os.read(parent, 4096):
            shown += chunk
    except OSError:  # how Linux says that the other side closed
        pass
    os.close(parent)
    assert process.wait() == 0
    assert b"\r\x1b[2Kstep 3/3" in shown
    assert all(len(line) < 300 for line in shown.splitlines())
