"""Measuring real updates: what is measured, and what follows from a part of it. How fast is nobody's test."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from bitnet.cost import measure as module
from bitnet.cost.flops import optimizer_flops
from bitnet.cost.measure import measure, micro_batch_flops, parts
from bitnet.errors import ConfigError
from bitnet.nn.config import BitNetConfig
from bitnet.train.config import TrainConfig

CPU = torch.device("cpu")
TRAIN = TrainConfig(seq_len=24, batch_size=16, grad_accumulation_steps=2, total_steps=10, optimizer="muon")


def test_parts_grow_from_one_layer_to_the_whole(tiny_config: BitNetConfig) -> None:
    ladder = list(parts(tiny_config, TRAIN))
    sizes = [micro_batch_flops(model, train) for model, train in ladder]
    assert (ladder[0][0].num_layers, ladder[0][1].batch_size) == (1, 1)
    assert ladder[-1] == (tiny_config, TRAIN)
    assert sizes == sorted(set(sizes))


@pytest.mark.slow
def test_a_small_run_is_measured_whole(tiny_config: BitNetConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that moves a millisecond at each look, so that a busy machine cannot change what happens."""
    monkeypatch.setattr(module.time, "perf_counter", map((1e-3).__mul__, itertools.count()).__next__)
    found = measure(tiny_config, TRAIN, CPU, seconds=0.5)
    assert found.whole
    assert (found.layers, found.rows, found.seq_len) == (2, 16, 24)
    assert found.update_s == pytest.approx(2 * found.forward_backward_s + found.optimizer_s)
    assert found.updates > 1
    assert found.peak_bytes > 4 * tiny_config.total_params


def test_from_a_part_the_whole_follows_by_operations(tiny_config: BitNetConfig) -> None:
    """Without time only one layer on one row is measured: the rest is proportion, and is said to be."""
    found = measure(tiny_config, TRAIN, CPU, seconds=0.0)
    assert not found.whole
    assert (found.layers, found.rows, found.updates) == (1, 1, 1)
    one = dataclasses.replace(tiny_config, num_layers=1)
    ratio = 2 * 16 * tiny_config.flops_per_token(24) / one.flops_per_token(24)
    update = optimizer_flops(tiny_config, "muon") / optimizer_flops(one, "muon")
    assert found.update_s == pytest.approx(ratio * found.forward_backward_s + update * found.optimizer_s)


def test_a_model_larger_than_the_memory_is_refused_before_it_is_built(
    tiny_config: BitNetConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "available_bytes", lambda: 1000)
    with pytest.raises(ConfigError, match="does not fit the memory"):
        measure(tiny_config, TRAIN, CPU, seconds=0.0)
