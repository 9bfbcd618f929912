"""A subject makes models and updates as training does, and a twin is the same subject with other settings."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from bitnet.diagnose.open_subject import open_experiment
from bitnet.diagnose.subject import Subject
from bitnet.diagnose.twin import KINDS, twin_of
from bitnet.experiments.arithmetic import experiment
from bitnet.train.config import RunConfig


def settings(**train: object) -> RunConfig:
    config = experiment.variants["quick"].config
    return dataclasses.replace(
        config,
        model=dataclasses.replace(
            config.model, hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=1, ffn_hidden_size=24
        ),
        train=dataclasses.replace(config.train, **train),  # type: ignore[arg-type]
        data=dataclasses.replace(config.data, max_operand=9),  # type: ignore[call-arg]
    )


def opened(**train: object) -> Subject:
    return open_experiment(experiment, "quick", settings(**train), torch.device("cpu"), full=False)


@pytest.fixture(scope="module")
def subject() -> Subject:
    return opened(batch_size=4)


def test_the_seed_decides_the_model(subject: Subject) -> None:
    again, other = opened(batch_size=4), opened(batch_size=4, seed=7)
    assert torch.equal(
        subject.model.blocks[0].attention.qkv_proj.weight, again.model.blocks[0].attention.qkv_proj.weight
    )
    assert not torch.equal(
        subject.model.blocks[0].attention.qkv_proj.weight, other.model.blocks[0].attention.qkv_proj.weight
    )


def test_sections_are_those_of_the_configuration(subject: Subject) -> None:
    described = subject.settings.to_json()
    assert subject.training == described["training"]
    assert subject.data == described["data"]
    assert subject.criteria == experiment.variants["quick"].criteria
    assert subject.planned_tokens == experiment.variants["quick"].config.train.total_tokens
    assert subject.fresh


def test_updates_of_a_run_are_repeated_in_its_format_of_muon_and_rehearsed_in_float32() -> None:
    """Diagnosis said of a run with Muon in bf16 that its updates do not repeat: off by 0.13 of the change."""
    subject = opened(batch_size=4, muon_precision="bf16")
    model = subject.new_model(subject.config)
    repeating, rehearsing = subject.run_optimizers(model).muon, subject.new_optimizers(model).muon
    assert repeating is not None
    assert rehearsing is not None
    assert (repeating.bf16, rehearsing.bf16) == (True, False)


def test_updates_are_the_loop_s_own_and_settings_can_be_replaced(subject: Subject) -> None:
    model = subject.new_model(subject.config)
    steps = subject.train(
        model, subject.new_optimizers(model), subject.task.source, num_steps=10, batch_size=2
    )
    report = next(iter(steps))
    assert report.step == 1
    assert report.tokens == 2 * subject.settings.train.seq_len
    assert report.lr == subject.settings.train.with_total_steps(10).rates().rates_at(1).lr
    assert subject.rates_at(3, peak_lr=0.5).lr != subject.rates_at(3).lr
    assert len(subject.read_update(subject.task.source, 1)[0].input_ids) == 4


def test_twins_compute_in_float32_whatever_the_run_s_precision_is() -> None:
    """Their updates are compared with float64, so bf16 products would only add noise."""
    run = opened(batch_size=4, precision="bf16", product="int8")
    assert run.bf16
    assert run.model.blocks[0].attention.qkv_proj.gradient_dtype == torch.bfloat16
    twin = twin_of(run, KINDS[0])
    assert not twin.bf16
    for model in (twin.model, twin.new_model(twin.config)):
        assert model.blocks[0].attention.qkv_proj.gradient_dtype == torch.float32


def test_twins_have_the_weight_gradients_of_the_run_unless_they_came_with_autocast() -> None:
    run = opened(batch_size=4, precision="fp32", product="packed")
    for dtype, expected in (("float32", torch.bfloat16), ("bfloat16", torch.float32)):
        before = {"linear_product": "packed", "gradient_dtype": dtype, "weight_gradient": "bf16"}
        twin = twin_of(dataclasses.replace(run, before=before), KINDS[0])
        for model in (twin.model, twin.new_model(twin.config)):
            assert model.blocks[0].attention.qkv_proj.weight_dtype == expected
