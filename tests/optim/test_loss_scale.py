"""Loss scaling moves as defined, passes over exactly the updates that overflowed, and is restored bit for
bit.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import bitnet.train.loop as loop
import bitnet.train.start as start
from bitnet.errors import ConfigError
from bitnet.experiments.arithmetic import QUICK, ArithmeticTask
from bitnet.nn.transformer import BitNetTransformer
from bitnet.optim.loss_scale import INITIAL_SCALE, LossScale
from bitnet.optim.optimizer import OptimizerConfig, Optimizers
from bitnet.optim.schedule import Rates
from bitnet.optim.update import LOSS_SCALE_OVERFLOW, UpdateOutcome, apply_update
from bitnet.run.layout import RunLayout
from bitnet.run.metrics import read_lines
from bitnet.train.device import Machine, choose_machine
from bitnet.train.loop import StepReport, train_steps
from conftest import TINY_TRAIN, run_command

CPU = torch.device("cpu")
MUON = OptimizerConfig(kind="muon", adam_beta1=0.9, adam_beta2=0.95, muon_momentum=0.95, muon_lr_ratio=10.0)


def update(
    model: BitNetTransformer, optimizers: Optimizers, scaling: LossScale | None, *, overflow: bool = False
) -> UpdateOutcome:
    """One update whose gradient is 0.01 everywhere, times the scale; one element of one of Muon's matrices
    may overflow.
    """
    for parameter in model.parameters():
        loss = 0.01 * parameter.sum()
        (loss if scaling is None else scaling.scaled(loss)).backward()  # type: ignore[no-untyped-call]
    if overflow:
        grad = model.blocks[0].attention.qkv_proj.weight.grad  # type: ignore[union-attr]
        grad[0, 0] = torch.inf
    return apply_update(model, optimizers, Rates(lr=0.01, wd=0.1), loss=1.0, clip_norm=1.0, scaling=scaling)


def weights(model: BitNetTransformer) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def test_a_scaled_update_equals_a_plain_one(tiny_model: BitNetTransformer) -> None:
    """The scale is a power of two, so that multiplying and dividing by it is exact."""
    begun = weights(tiny_model)
    results = []
    for scaling in (None, LossScale(CPU)):
        with torch.no_grad():
            for parameter, value in zip(tiny_model.parameters(), begun, strict=True):
                parameter.copy_(value)
        optimizers = Optimizers(tiny_model, MUON)
        norms = [update(tiny_model, optimizers, scaling).grad_norm for _ in range(3)]
        results.append((norms, weights(tiny_model)))
    assert results[0][0] == results[1][0]
    assert all(torch.equal(one, other) for one, other in zip(results[0][1], results[1][1], strict=True))
    assert not all(torch.equal(one, other) for one, other in zip(begun, results[0][1], strict=True))


def test_an_overflow_moves_no_weight_of_either_optimizer_and_halves_the_scale(
    tiny_model: BitNetTransformer,
) -> None:
    """GradScaler.step would skip Muon, where the overflow is, and let AdamW move."""
    scaling, optimizers = LossScale(CPU), Optimizers(tiny_model, MUON)
    before = weights(tiny_model)
    assert update(tiny_model, optimizers, scaling, overflow=True).refused == LOSS_SCALE_OVERFLOW
    assert all(torch.equal(one, other) for one, other in zip(before, weights(tiny_model), strict=True))
    assert optimizers.state_tensors() == {}
    assert scaling.value == INITIAL_SCALE / 2
    assert update(tiny_model, optimizers, scaling).refused is None
    assert scaling.value == INITIAL_SCALE / 2


def test_the_scale_doubles_after_two_thousand_good_updates(tiny_model: BitNetTransformer) -> None:
    scaling, optimizers = LossScale(CPU), Optimizers(tiny_model, MUON)
    scaling.load({"scale": 1024.0, "good_updates": 1998})
    update(tiny_model, optimizers, scaling)
    assert scaling.state() == {"scale": 1024.0, "good_updates": 1999}
    update(tiny_model, optimizers, scaling)
    assert scaling.state() == {"scale": 2048.0, "good_updates": 0}


def test_an_overflow_that_no_scale_ends_is_a_gradient_that_is_not_finite(
    tiny_model: BitNetTransformer,
) -> None:
    scaling, optimizers = LossScale(CPU), Optimizers(tiny_model, MUON)
    reasons = [update(tiny_model, optimizers, scaling, overflow=True).refused for _ in range(19)]
    assert reasons == [
        *[LOSS_SCALE_OVERFLOW] * 16,
        *["nan_inf_grad"] * 3,
    ]  # 2**16 halves to 1 in sixteen steps
    assert scaling.value == 1.0


def test_its_state_is_exact_in_json(tiny_model: BitNetTransformer) -> None:
    scaling, optimizers = LossScale(CPU), Optimizers(tiny_model, MUON)
    for overflow in (True, False, False):
        update(tiny_model, optimizers, scaling, overflow=overflow)
    other = LossScale(CPU)
    other.load(json.loads(json.dumps(scaling.state())))
    assert other.state() == scaling.state() == {"scale": 32768.0, "good_updates": 2}


def trained(*, fp16: bool) -> list[StepReport]:
    model_config = dataclasses.replace(
        QUICK.model, hidden_size=32, num_layers=1, num_heads=2, num_kv_heads=1, ffn_hidden_size=48
    )
    config = dataclasses.replace(
        QUICK, model=model_config, train=dataclasses.replace(QUICK.train.with_total_steps(6), batch_size=8)
    )
    torch.manual_seed(0)
    model = BitNetTransformer(model_config)
    optimizers = Optimizers(model, config.train.optimizer_config())
    scaling = LossScale(CPU) if fp16 else None
    return list(
        train_steps(model, model, ArithmeticTask(config).source, optimizers, config.train, scaling=scaling)
    )


@pytest.mark.slow
def test_training_in_fp16_has_the_losses_of_fp32() -> None:
    """torch's fp16 on the CPU is slow and has the values of a GPU's; the products round at 2**-11."""
    plain, scaled = trained(fp16=False), trained(fp16=True)
    assert [report.loss for report in scaled] == pytest.approx([report.loss for report in plain], rel=5e-3)
    assert [report.loss for report in scaled] != [report.loss for report in plain]
    assert [report.loss_scale for report in scaled] == [INITIAL_SCALE] * 6
    assert [report.loss_scale for report in plain] == [None] * 6
    assert all(report.refused is None for report in scaled)


def test_a_cpu_is_refused_with_the_reason(tmp_path: Path) -> None:
    result = run_command(*TINY_TRAIN, "--num-steps", 1, "--train.precision", "fp16", "--runs-dir", tmp_path)
    assert result.code == 2
    assert "fp16" in result.err
    assert "--train.precision bf16" in result.err
    assert len(result.err.strip().splitlines()) == 1
    with pytest.raises(ConfigError, match="GPU"):
        choose_machine(dataclasses.replace(QUICK.train, precision="fp16"), CPU)


@pytest.fixture
def fp16_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        start, "choose_machine", lambda config, device, *rest: Machine(device, "float", bf16=False, fp16=True)
    )


def planted(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """Gradients that overflow at these updates, whenever they are done."""
    real_apply, real_numbers, now = loop.apply_update, loop.row_numbers, 0

    def numbers(step: int, *words: Any, **sizes: Any) -> Any:
        nonlocal now
        now = step
        return real_numbers(step, *words, **sizes)

    def overflowing(model: BitNetTransformer, *words: Any, **options: Any) -> UpdateOutcome:
        if now in steps:
            next(model.parameters()).grad[0] = torch.inf  # type: ignore[index]
        return real_apply(model, *words, **options)

    monkeypatch.setattr(loop, "row_numbers", numbers)
    monkeypatch.setattr(loop, "apply_update", overflowing)


@pytest.mark.slow
@pytest.mark.usefixtures("fp16_on_cpu")
def test_overflows_are_recorded_are_no_anomaly_and_survive_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four overflows in a row are a scale that finds its place, not a run that has to go back."""
    planted(monkeypatch, {1, 2, 3, 4, 7})
    words = [
        *TINY_TRAIN,
        "--num-steps",
        8,
        "--train.checkpoint-every",
        3,
        "--train.precision",
        "fp16",
        "--runs-dir",
        tmp_path,
    ]
    assert run_command(*words, "--run-id", "whole").code == 0
    layout = RunLayout(tmp_path / "whole")
    rows = read_lines(layout.scalars).rows
    assert [row["loss_scale"] for row in rows] == [INITIAL_SCALE / 2**n for n in (0, 1, 2, 3, 4, 4, 4, 5)]
    assert [row["refused"] for row in rows] == [
        *[LOSS_SCALE_OVERFLOW] * 4,
        None,
        None,
        LOSS_SCALE_OVERFLOW,
        None,
    ]
    assert all(row["anomaly_flag"] is None for row in rows)
    assert layout.anomaly_folders() == []
    assert not layout.roll_backs.exists()

    real = start.train_steps

    def cut(*arguments: Any, **options: Any) -> Any:
        for report in real(*arguments, **options):
            if report.step == 5:
                raise KeyboardInterrupt
            yield report

    with monkeypatch.context() as patch:
        patch.setattr(start, "train_steps", cut)
        assert run_command(*words, "--run-id", "cut").code == 130
    assert run_command(*words, "--run-id", "cut").code == 0
    for name in ("model.safetensors", "optimizer.safetensors"):
        one, other = (RunLayout(tmp_path / run).checkpoint(8) / name for run in ("whole", "cut"))
        assert one.read_bytes() == other.read_bytes()
    states = [
        json.loads((RunLayout(tmp_path / run).checkpoint(8) / "state.json").read_text())["loss_scale"]
        for run in ("whole", "cut")
    ]
    assert states[0] == states[1] == {"scale": INITIAL_SCALE / 32, "good_updates": 1}


@pytest.mark.slow
@pytest.mark.usefixtures("fp16_on_cpu")
def test_an_overflow_at_the_smallest_scale_is_answered_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted(monkeypatch, set(range(1000)))
    result = run_command(
        *TINY_TRAIN, "--num-steps", 40, "--train.precision", "fp16", "--runs-dir", tmp_path, "--run-id", "r"
    )
    assert result.code == 1
    assert "nan_inf_grad in 3 updates in a row" in result.err
    assert "--train.precision fp32" in result.err


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="fp16 is trained on CUDA, and this PyTorch sees no GPU"
)
def test_fp16_trains_on_a_gpu(tmp_path: Path) -> None:
    words = [word if word != "cpu" else "cuda" for word in TINY_TRAIN]
    result = run_command(
        *words, "--num-steps", 6, "--train.precision", "fp16", "--runs-dir", tmp_path, "--run-id", "r"
    )
    assert result.code == 0
    rows = read_lines(RunLayout(tmp_path / "r").scalars).rows
    assert all(row["loss"] is not None and row["loss_scale"] >= 1 for row in rows)
