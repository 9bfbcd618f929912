"""What a machine does best, chosen once: devices, precision, product, processes."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args

import pytest
import torch

from bitnet.errors import ConfigError
from bitnet.nn.bitlinear import Product
from bitnet.train import device as module
from bitnet.train.config import TrainConfig
from bitnet.train.device import (
    choose_device,
    choose_machine,
    peak_flops,
    refuse_several_processes,
    wants_compile,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
CONFIG = TrainConfig(seq_len=8, batch_size=1, total_steps=1)


def test_auto_takes_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for there, kind in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert choose_device("auto").type == kind


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="sees no GPU"):
        choose_device("cuda")
    with pytest.raises(ConfigError, match="must be auto, cpu or cuda"):
        choose_device("tpu")


@pytest.mark.parametrize(
    ("precision", "device", "capability", "bf16"),
    [
        ("auto", CPU, (0, 0), False),
        ("bf16", CPU, (0, 0), True),
        ("fp32", CUDA, (9, 0), False),
        ("auto", CUDA, (8, 0), True),
        ("auto", CUDA, (7, 5), False),
    ],
)
def test_bf16_is_taken_where_it_is_fast(
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    device: torch.device,
    capability: tuple[int, int],
    bf16: bool,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    machine = choose_machine(dataclasses.replace(CONFIG, precision=precision), device)  # type: ignore[arg-type]
    assert (machine.bf16, machine.fp16) == (bf16, False)
    assert machine.gradient_dtype == (torch.bfloat16 if bf16 else torch.float32)


@pytest.mark.parametrize(
    ("packed", "int8", "chosen"),
    [(True, True, "packed"), (True, False, "packed"), (False, True, "int8"), (False, False, "float")],
)
def test_the_product_is_what_is_fast_here_and_as_asked_otherwise(
    monkeypatch: pytest.MonkeyPatch, packed: bool, int8: bool, chosen: str
) -> None:
    monkeypatch.setattr(module, "has_fast_packed", lambda device: packed)
    monkeypatch.setattr(module, "has_fast_int8", lambda device: int8)
    assert choose_machine(CONFIG, CPU).product == chosen
    for product in get_args(Product):
        assert choose_machine(dataclasses.replace(CONFIG, product=product), CPU).product == product


def test_a_run_goes_on_with_the_products_that_it_was_trained_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one from before there was a choice of input gradients, whose sessions do not name any."""
    monkeypatch.setattr(module, "has_fast_packed", lambda device: True)
    old = choose_machine(CONFIG, CPU, {"linear_product": "int8"})
    assert (old.product, old.input_gradient) == ("int8", "float")
    new = choose_machine(CONFIG, CPU, {"linear_product": "packed", "input_gradient": "int8"})
    assert (new.product, new.input_gradient) == ("packed", "int8")
    asked = dataclasses.replace(CONFIG, product="float")
    assert choose_machine(asked, CPU, {"linear_product": "float"}).product == "float"
    with pytest.raises(ConfigError, match="linear_product was 'ternary2'"):
        choose_machine(CONFIG, CPU, {"linear_product": "ternary2"})


def test_fused_blocks_go_with_packed_products_where_kernels_are_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for fast in (True, False):
        monkeypatch.setattr(module, "has_fast_packed", lambda device, fast=fast: fast)
        assert choose_machine(dataclasses.replace(CONFIG, product="packed"), CPU).fused_blocks == fast
        for product in ("int8", "float"):
            config = dataclasses.replace(CONFIG, product=product, fused="on")
            assert not choose_machine(config, CPU).fused_blocks
        for fused in ("on", "off"):
            config = dataclasses.replace(CONFIG, product="packed", fused=fused)
            assert choose_machine(config, CPU).fused_blocks == (fused == "on")
    monkeypatch.setattr(module, "has_fast_packed", lambda device: True)
    for before in (True, False, None):
        recorded = {"linear_product": "packed", "fused_blocks": before}
        assert choose_machine(CONFIG, CPU, recorded).fused_blocks == (before is True)


def test_int8_input_gradients_go_with_packed_products_only() -> None:
    config = dataclasses.replace(CONFIG, product="packed", input_gradient="int8")
    assert choose_machine(config, CPU).input_gradient == "int8"
    assert choose_machine(dataclasses.replace(config, input_gradient="float"), CPU).input_gradient == "float"
    for product in ("int8", "float"):
        with pytest.raises(ConfigError, match="the product is"):
            choose_machine(dataclasses.replace(config, product=product), CPU)


def test_bf16_weight_gradients_are_chosen_beside_float32_and_follow_autocast(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    packed = dataclasses.replace(CONFIG, product="packed", precision="fp32")
    for auto, units, chosen in [("fp32", True, "fp32"), ("bf16", True, "bf16"), ("bf16", False, "fp32")]:
        monkeypatch.setattr(module, "AUTO_WEIGHT_GRADIENT", auto)
        monkeypatch.setattr(module, "has_bf16_units", lambda device, units=units: units)
        assert choose_machine(packed, CPU).weight_gradient == chosen
        in_bf16 = choose_machine(dataclasses.replace(packed, precision="bf16"), CPU)
        assert (in_bf16.weight_gradient, in_bf16.weight_dtype) == ("bf16", torch.bfloat16)

    asked = choose_machine(dataclasses.replace(packed, weight_gradient="bf16"), CPU)
    assert (asked.bf16, asked.gradient_dtype, asked.weight_dtype) == (False, torch.float32, torch.bfloat16)
    plain = choose_machine(dataclasses.replace(packed, precision="bf16", weight_gradient="fp32"), CPU)
    assert (plain.bf16, plain.weight_dtype) == (True, torch.float32)


def test_other_products_take_the_format_of_autocast_for_weight_gradients() -> None:
    for product, precision, taken in [
        ("float", "bf16", "fp32"),
        ("int8", "fp32", "fp32"),
        ("int8", "bf16", "bf16"),
    ]:
        config = dataclasses.replace(CONFIG, product=product, precision=precision)  # type: ignore[arg-type]
        assert choose_machine(config, CPU).weight_gradient == taken
        other: Any = {"fp32": "bf16", "bf16": "fp32"}[taken]
        with pytest.raises(ConfigError, match=f"weight_gradient is {other}, .* computes it in {taken}"):
            choose_machine(dataclasses.replace(config, weight_gradient=other), CPU)


def test_a_run_goes_on_with_its_weight_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one from before there was a choice, where they followed autocast, which a bf16 weight gradient
    does not switch on.
    """
    monkeypatch.setattr(module, "AUTO_WEIGHT_GRADIENT", "bf16")
    monkeypatch.setattr(module, "has_bf16_units", lambda device: True)
    for dtype, recorded, bf16, chosen in [
        ("float32", None, False, "fp32"),
        ("float32", "fp32", False, "fp32"),
        ("float32", "bf16", False, "bf16"),
        ("bfloat16", None, True, "bf16"),
        ("bfloat16", "bf16", True, "bf16"),
    ]:
        before = {"linear_product": "packed", "gradient_dtype": dtype}
        before |= {} if recorded is None else {"weight_gradient": recorded}
        machine = choose_machine(CONFIG, CPU, before)
        assert (machine.bf16, machine.weight_gradient) == (bf16, chosen)
    with pytest.raises(ConfigError, match="weight_gradient was 'fp8'"):
        choose_machine(CONFIG, CPU, {"linear_product": "packed", "weight_gradient": "fp8"})


def test_one_process_trains_and_one_of_several_is_refused() -> None:
    refuse_several_processes({})
    refuse_several_processes({"RANK": "0", "WORLD_SIZE": "1"})
    with pytest.raises(ConfigError, match="process 2 of 4"):
        refuse_several_processes({"RANK": "2", "WORLD_SIZE": "4"})
    with pytest.raises(ConfigError, match="RANK is 'x'"):
        refuse_several_processes({"RANK": "x"})


def test_compiling_is_tried_on_a_gpu_with_triton_or_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: object())
    assert wants_compile(CONFIG, CUDA)
    assert not wants_compile(CONFIG, CPU)
    assert wants_compile(dataclasses.replace(CONFIG, compile="on"), CPU)
    assert not wants_compile(dataclasses.replace(CONFIG, compile="off"), CUDA)
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert not wants_compile(CONFIG, CUDA)


def test_the_peak_rate_is_known_by_name_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert peak_flops(CPU) is None
    for name, peak in (("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA L40S", 362e12), ("some other", None)):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert peak_flops(CUDA) == peak


def test_graphs_need_a_gpu_and_one_micro_batch_and_codes_do_not_fit_fp16(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    graphs = dataclasses.replace(CONFIG, compile="graphs")
    assert choose_machine(graphs, CUDA).bf16
    assert wants_compile(graphs, CUDA)
    with pytest.raises(ConfigError, match="the device is cpu; use --train"):
        choose_machine(graphs, CPU)
    with pytest.raises(ConfigError, match="grad_accumulation_steps 2; use"):
        choose_machine(dataclasses.replace(graphs, grad_accumulation_steps=2), CUDA)
    half = dataclasses.replace(CONFIG, product="autocast", precision="fp16")
    with pytest.raises(ConfigError, match="sums of codes above 65,504 overflow"):
        choose_machine(half, CUDA)
