"""The memory formula against what it describes: autograd's saved tensors, the allocator, the optimizers'
state.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitnet.cost.memory import (
    Memory,
    Numerics,
    head_ledger,
    kept_copies,
    layer_ledger,
    memory_of,
    numerics_on,
    optimizer_bytes,
    ternary_shapes,
)
from bitnet.data.stream import Batch
from bitnet.nn import attend
from bitnet.nn.config import BitNetConfig
from bitnet.nn.transformer import BitNetTransformer
from bitnet.optim.optimizer import OptimizerKind, Optimizers
from bitnet.optim.update import apply_update
from bitnet.train.config import TrainConfig
from bitnet.train.loop import autocast
from bitnet.train.objective import NextToken, objective_of

CPU = torch.device("cpu")
ROWS, TOKENS = 3, 20
WAYS = [
    ("ternary", "int8", "packed, fused"),
    ("ternary", "int8", "packed"),
    ("ternary", "int8", "int8"),
    ("ternary", "int8", "float"),
    ("ternary", "full", "float"),
    ("full", "int8", "float"),
    ("full", "full", "float"),
]


def batch_of(config: BitNetConfig, rows: int, tokens: int) -> Batch:
    ids = torch.randint(0, config.vocab_size, (rows, tokens))
    return Batch(ids, ids, torch.ones_like(ids, dtype=torch.bool))


def model_of(config: BitNetConfig, numerics: Numerics) -> BitNetTransformer:
    model = BitNetTransformer(config)
    kind = torch.bfloat16 if numerics.bf16 else torch.float32
    model.set_product(numerics.product, kind, numerics.input_gradient, fused=numerics.fused_blocks)
    return model


def tensors_of(kept: Any) -> list[torch.Tensor]:
    """The tensors of a layer's kept codes, whichever form they have."""
    return (
        [kept] if isinstance(kept, torch.Tensor) else [tensor for part in kept for tensor in tensors_of(part)]
    )


def saved_bytes(model: BitNetTransformer, batch: Batch, numerics: Numerics, objective: NextToken) -> int:
    """Storages that autograd keeps after a forward pass, each once, without those that are there anyway."""
    with autocast(CPU, numerics.bf16):
        model(batch.input_ids)  # fills the cache of ternary codes
    there = [*model.parameters(), model.cos, model.sin, *batch.tensors().values()]
    there += [
        t for layer in model.bit_linears().values() if layer._cached for t in tensors_of(layer._cached[1])
    ]
    known = {tensor.untyped_storage().data_ptr() for tensor in there}
    found: dict[int, torch.Tensor] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in known and tensor.dim() > 0:
            found[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), autocast(CPU, numerics.bf16):
        loss = objective.terms(model(batch.input_ids), batch).sum()
    assert loss.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("activation", "sub_norm", "bf16", "short"),
    [
        (*both, bf16, short)
        for both in itertools.product(["silu", "relu2"], [False, True])
        for bf16, short in ((False, True), (True, True), (True, False))
    ],
)
@pytest.mark.parametrize(("weights", "activations", "product"), WAYS)
def test_ledgers_are_what_autograd_keeps_to_the_byte(
    tiny_config: BitNetConfig,
    monkeypatch: pytest.MonkeyPatch,
    activation: str,
    sub_norm: bool,
    bf16: bool,
    short: bool,
    weights: str,
    activations: str,
    product: str,
) -> None:
    changes = {
        "activation": activation,
        "sub_norm": sub_norm,
        "weights": weights,
        "activations": activations,
        "vocab_size": 40,
    }
    config = dataclasses.replace(tiny_config, **changes)  # type: ignore[arg-type]
    kind, fused = product.removesuffix(", fused"), product.endswith("fused")
    monkeypatch.setattr(attend, "LONG_ROW", TOKENS + 1 if short else TOKENS)
    numerics = Numerics(
        device="cpu",
        product=kind,  # type: ignore[arg-type]
        bf16=bf16,
        fused_blocks=fused,
        short_rows=short,
    )
    for_each_token = config.num_layers * sum(layer_ledger(config, numerics).values()) + sum(
        head_ledger(config, numerics).values()
    )
    expected = ROWS * TOKENS * for_each_token + kept_copies(config, numerics, TOKENS)
    model, batch = model_of(config, numerics), batch_of(config, ROWS, TOKENS)
    assert saved_bytes(model, batch, numerics, NextToken()) == expected
    more = sum(head_ledger(config, numerics, unlikely=7).values()) - sum(
        head_ledger(config, numerics).values()
    )
    assert saved_bytes(model, batch, numerics, NextToken(2.0, 7)) == expected + ROWS * TOKENS * more


def allocator_peak(config: BitNetConfig, train: TrainConfig, numerics: Numerics, folder: Path) -> int:
    """Most bytes of tensors at once in a second update, from the profiler's record of every allocation."""
    model = model_of(config, numerics)
    optimizers = Optimizers(model, train.optimizer_config())
    batch = batch_of(config, train.batch_size, train.seq_len)

    def micro_batches() -> None:
        for _ in range(train.grad_accumulation_steps):
            with autocast(CPU, numerics.bf16):
                loss = (
                    objective_of(train, 1).terms(model(batch.input_ids), batch).sum()
                    / batch.input_ids.numel()
                )
            loss.backward()

    micro_batches()
    apply_update(model, optimizers, train.rates().rates_at(1), loss=1.0, clip_norm=1.0)
    for layer in model.bit_linears().values():
        layer._cached = None  # the profiler sees the new codes being made, but cannot see the old ones go
    held = sum(
        t.numel() * t.element_size() for t in (*model.parameters(), *optimizers.state_tensors().values())
    )
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiler:
        micro_batches()
        apply_update(model, optimizers, train.rates().rates_at(1), loss=1.0, clip_norm=1.0)
    profiler.export_chrome_trace(str(folder / "trace.json"))
    events = [
        event
        for event in json.loads((folder / "trace.json").read_text())["traceEvents"]
        if event.get("name") == "[memory]"
    ]
    events.sort(key=lambda event: event["ts"])
    return held + max(itertools.accumulate(event["args"]["Bytes"] for event in events))


WIDE = BitNetConfig(
    vocab_size=300,
    hidden_size=64,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    ffn_hidden_size=192,
    max_seq_length=64,
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "rows", "product", "training"),
    [
        ({}, 16, "packed", {}),
        ({}, 16, "packed", {"input_gradient": "int8"}),
        ({}, 16, "packed", {"input_gradient": "int8", "fused": "on"}),
        ({"sub_norm": True}, 16, "packed", {"fused": "on"}),
        ({}, 16, "int8", {}),
        ({}, 16, "int8", {"optimizer": "muon", "grad_accumulation_steps": 2}),
        ({"weights": "full", "activations": "full"}, 16, "float", {}),
        ({"activation": "relu2", "sub_norm": True}, 16, "int8", {}),
        ({"vocab_size": 4000}, 16, "int8", {}),
        ({"vocab_size": 4000}, 16, "int8", {"stage1_unlikelihood": 1.0}),
        ({}, 16, "int8", {"stage1_unlikelihood": 1.0}),
        ({"vocab_size": 64}, 16, "int8", {"stage1_unlikelihood": 1.0, "unlikelihood_tokens": 200}),
        ({}, 1, "int8", {"optimizer": "muon"}),  # the update, not the backward pass, decides
    ],
)
def test_peak_is_the_allocators_within_three_percent(
    changes: dict[str, object], rows: int, product: str, training: dict[str, object], tmp_path: Path
) -> None:
    config = dataclasses.replace(WIDE, **changes)  # type: ignore[arg-type]
    train = TrainConfig(seq_len=64, batch_size=rows, total_steps=2, **training)  # type: ignore[arg-type]
    gradient = "int8" if train.input_gradient == "int8" else "float"
    numerics = Numerics(
        device="cpu",
        product=product,  # type: ignore[arg-type]
        bf16=False,
        input_gradient=gradient,  # type: ignore[arg-type]
        fused_blocks=train.fused == "on",
    )
    assert memory_of(config, train, numerics).peak == pytest.approx(
        allocator_peak(config, train, numerics, tmp_path), rel=0.03
    )


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_optimizer_state_is_the_optimizers_own(tiny_config: BitNetConfig, kind: OptimizerKind) -> None:
    model = BitNetTransformer(tiny_config)
    train = TrainConfig(seq_len=8, batch_size=1, total_steps=1, optimizer=kind)
    optimizers = Optimizers(model, train.optimizer_config())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizers.step(train.rates().rates_at(1))
    state = sum(
        t.numel() * t.element_size() for t in optimizers.state_tensors().values() if t.dim() > 0
    )  # without step counts
    assert optimizer_bytes(tiny_config, kind) == state


def test_ternary_shapes_are_those_of_the_model(
    tiny_config: BitNetConfig, tiny_model: BitNetTransformer
) -> None:
    logical = [
        (rows, layer.in_features) for layer in tiny_model.bit_linears().values() for rows in layer.rows
    ]
    assert sorted(ternary_shapes(tiny_config).elements()) == sorted(logical)


def test_numerics_follow_the_settings() -> None:
    train = TrainConfig(seq_len=64, batch_size=1, total_steps=1)
    full = dataclasses.replace(WIDE, weights="full", activations="full")
    assert numerics_on("cuda", WIDE, train) == Numerics(device="cuda", product="int8", bf16=True)
    assert numerics_on("cuda", full, train).product == "float"
    assert not numerics_on("cpu", WIDE, train).bf16
    assert (
        numerics_on("cpu", WIDE, dataclasses.replace(train, product="float", precision="bf16")).product
        == "float"
    )
    assert numerics_on("cpu", WIDE, dataclasses.replace(train, precision="bf16")).bf16


@given(rows=st.integers(1, 500), accumulation=st.integers(1, 3), bf16=st.booleans())
def test_more_rows_never_take_less(rows: int, accumulation: int, bf16: bool) -> None:
    numerics = Numerics(device="cuda", product="int8", bf16=bf16)

    def memory(count: int) -> Memory:
        train = TrainConfig(seq_len=64, batch_size=count, grad_accumulation_steps=accumulation, total_steps=1)
        return memory_of(WIDE, train, numerics)

    assert memory(rows).peak <= memory(rows + 1).peak
    assert memory(rows).weights == memory(rows + 1).weights == 4 * WIDE.total_params
