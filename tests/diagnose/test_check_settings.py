"""Settings are not taken as truth: every variant here passes, and what makes no sense is named."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from bitnet.cli.diagnose import of_experiment
from bitnet.cli.registry import experiment_names, find_experiment
from bitnet.diagnose import check_settings
from bitnet.diagnose.subject import Subject
from conftest import TINY_MODEL


@pytest.fixture(scope="module")
def subject() -> Subject:
    return of_experiment(
        "arithmetic",
        ["--variant", "reference", "--device", "cpu", *TINY_MODEL, "--data.max-operand", "9"],
        full=False,
    )


def missed(subject: Subject, training: dict[str, Any], **model: Any) -> list[str]:
    settings = dataclasses.replace(
        subject.settings,
        model=dataclasses.replace(subject.config, **model),
        train=dataclasses.replace(subject.settings.train, **training),
    )
    changed = dataclasses.replace(subject, settings=settings)
    return [check.name for check in check_settings.settings(changed) if not check.ok]


@pytest.mark.parametrize("name", experiment_names())
def test_every_variant_passes(subject: Subject, name: str) -> None:
    """Published recipes and ours: the ranges hold them all."""
    experiment = find_experiment(name)
    begins = {"start_from": "a run"} if experiment.starts_from_a_run else {}
    for variant, made in experiment.variants.items():
        assert missed(dataclasses.replace(subject, settings=made.config), begins) == [], variant


@pytest.mark.parametrize(
    ("training", "model", "name"),
    [
        ({"adam_beta1": 0.95, "adam_beta2": 0.9}, {}, "Adam's betas"),
        ({"warmup_steps": 20_000}, {}, "warm-up as a share of the run"),
        ({"stage1_end": 24_400}, {}, "stage boundary as a share of the run"),
        ({"stage1_wd": 0.0}, {}, "weight decay acts"),
        ({"stage2_wd": 0.1}, {}, "weight decay is switched off"),
        ({"final_lr": 0.003}, {}, "rates fall to the end"),
        ({"stage2_lr": 0.002}, {}, "rates fall to the end"),
        ({"grad_clip_norm": 1e-6}, {}, "clipping norm"),
        ({"eval_every": 24_414}, {}, "evaluations during the run"),
        ({"stage1_unlikelihood": 50.0}, {}, "weight of the unlikelihood"),
        ({"spike_factor": 1.0}, {}, "alarms are above the noise"),
        ({}, {"norm_eps": 0.5}, "epsilon of the norms"),
        ({}, {"rope_theta": 2.0}, "base of the rotary positions"),
    ],
)
def test_what_makes_no_sense_is_named(
    subject: Subject, training: dict[str, Any], model: dict[str, Any], name: str
) -> None:
    assert name in missed(subject, training, **model)


def test_a_short_trial_is_nobodys_plan(subject: Subject) -> None:
    """Shares and periods of a run of 60 updates say nothing."""
    assert missed(subject, {"total_steps": 60, "stage1_end": 60, "warmup_steps": 30, "eval_every": 100}) == []
