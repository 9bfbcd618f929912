"""Twins in which every mechanism acts: a healthy one passes, and faults that are inert in the examined model
are found in them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from bitnet.cli.diagnose import of_experiment
from bitnet.diagnose import check_decoding, check_formats, check_twin
from bitnet.diagnose.finding import Check
from bitnet.diagnose.subject import Subject
from bitnet.diagnose.twin import KINDS, twin_of
from bitnet.nn import bitlinear, transformer
from bitnet.nn.quantize import Int8Rows
from conftest import TINY_MODEL


@pytest.fixture(scope="module")
def subject() -> Subject:
    """One key/value head, no decay, no sub-norm, next tokens only."""
    return of_experiment(
        "arithmetic",
        ["--variant", "quick", "--device", "cpu", *TINY_MODEL, "--data.max-operand", "9"],
        full=False,
    )


def failed(checks: Iterator[Check]) -> set[str]:
    return {check.name for check in checks if not check.ok}


@pytest.mark.slow
def test_healthy_twins_pass(subject: Subject) -> None:
    """Three of them: forward pass, updates in warm-up and around the stage boundary, every objective."""
    checks = list(check_twin.twins(subject))
    assert [check for check in checks if not check.ok] == []
    assert {
        name for name in ("AdamW", "Muon", "preference") if any(name in check.name for check in checks)
    } == {"AdamW", "Muon", "preference"}


@pytest.mark.slow
def test_every_mechanism_acts_in_a_twin(subject: Subject) -> None:
    twin = twin_of(subject, KINDS[0])
    config, training = twin.config, twin.training
    assert 1 < config.num_kv_heads < config.num_heads
    assert config.sub_norm
    assert training["stage1_wd"] > training["stage2_wd"] > 0
    assert training["stage1_unlikelihood"] > training["stage2_unlikelihood"] > 0
    rows = twin.task.source.rows(torch.arange(6).numpy())
    assert rows.segments is not None
    scored = rows.loss_mask.sum(1)
    assert int(scored.max()) > 3 * int(scored.min()), "micro-batches weigh differently"
    (update, _) = check_twin.watched(twin, 0, 2)
    assert update.report.grad_norm > 2 * training["grad_clip_norm"], "clipping acts"


def test_heads_that_share_the_wrong_keys_are_seen(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one key/value head there is no wrong one to take; with two of six there is."""
    real = torch.nn.functional.scaled_dot_product_attention

    def interleaved(
        q: Any, k: Any, v: Any, mask: Any = None, *, is_causal: bool = False, enable_gqa: bool = False
    ) -> Any:
        times = q.shape[1] // k.shape[1]
        return real(q, k.repeat(1, times, 1, 1), v.repeat(1, times, 1, 1), mask, is_causal=is_causal)

    monkeypatch.setattr(transformer.F, "scaled_dot_product_attention", interleaved)
    assert any(
        "attention and rotary" in name
        for name in failed(check_twin.forward(twin_of(subject, KINDS[0]), KINDS[0]))
    )


def test_codes_that_wrap_in_bfloat16_are_seen(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """127.5 rounds to 128 in bfloat16 and becomes -128: the largest input of a token changes its sign, and
    float32 shows nothing.
    """
    assert failed(check_formats.formats(subject)) == set()

    def wraps(x: torch.Tensor) -> Int8Rows:
        largest = x.detach().abs().amax(dim=-1, keepdim=True).clamp_(min=1e-5)
        return Int8Rows((x.detach() * (127.0 / largest)).round_().to(torch.int8), largest.float() / 127.0)

    monkeypatch.setattr(bitlinear, "quantize_activations", wraps)
    found = failed(check_formats.formats(subject))
    assert "layers compute the same in bfloat16" in found
    assert "layers compute the same in float32" not in found


def test_four_million_positions_of_a_foreign_configuration_are_not_filled(subject: Subject) -> None:
    """The check decodes up to the last position: attention over so many would take days."""
    assert len(list(check_decoding.late_positions(subject))) == 2
    model = dataclasses.replace(subject.config, max_seq_length=1 << 22)
    settings = dataclasses.replace(subject.settings, model=model)
    endless = dataclasses.replace(subject, settings=settings)
    assert list(check_decoding.late_positions(endless)) == []
