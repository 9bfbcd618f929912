"""Training in reduced formats on the device that BITNET_TEST_DEVICE names (default: cpu); gpu.sh runs it."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bitnet.data.stream import Batch
from bitnet.nn.bitlinear import Product
from bitnet.nn.config import BitNetConfig
from bitnet.nn.transformer import BitNetTransformer
from bitnet.train.compiled import compiled_form
from bitnet.train.loop import autocast
from bitnet.train.objective import NextToken, terms_of
from bitnet.train.trial import Trial, loss_refusal, refusal
from conftest import TINY_TRAIN, needs_compiler, run_command

DEVICE = torch.device(os.environ.get("BITNET_TEST_DEVICE", "cpu"))
needs_cuda = pytest.mark.skipif(DEVICE.type != "cuda", reason="needs a GPU, and BITNET_TEST_DEVICE=cuda")
CONFIG = BitNetConfig(
    vocab_size=1024,
    hidden_size=64,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    ffn_hidden_size=128,
    max_seq_length=32,
)
FORMATS = ["fp32", "bf16", pytest.param("fp16", marks=needs_cuda)]
GRAPHS = [False, pytest.param(True, marks=needs_cuda)]


def trial_of(precision: str, **changes: object) -> Trial:
    """A small model and a batch on the device."""
    torch.manual_seed(1)
    model = BitNetTransformer(dataclasses.replace(CONFIG, **changes)).to(DEVICE)  # type: ignore[arg-type]
    ids = torch.randint(0, CONFIG.vocab_size, (4, 32), device=DEVICE)
    batch = Batch(ids, ids.roll(-1, 1), torch.rand(4, 32, device=DEVICE) < 0.9)
    return Trial(model, batch, NextToken(), bf16=precision == "bf16", fp16=precision == "fp16")


@pytest.mark.parametrize("product", ["int8", "autocast"])
@pytest.mark.parametrize("precision", FORMATS)
def test_products_are_right(precision: str, product: Product) -> None:
    if (precision, product) == ("fp16", "autocast"):
        pytest.skip("refused: sums of codes overflow in fp16")
    trial = trial_of(precision)
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

    def multiplying(kind: Product) -> object:
        def forward(ids: Tensor) -> Tensor:
            trial.model.set_product(kind, dtypes[precision])
            logits: Tensor = trial.model(ids)
            return logits

        return forward

    assert refusal(trial, multiplying("float"), multiplying(product)) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_fused_loss_is_right(precision: str) -> None:
    assert loss_refusal(trial_of(precision)) is None


@pytest.mark.parametrize("product", ["float", "int8", "packed", "autocast"])
@pytest.mark.parametrize("weights", ["ternary", "full"])
def test_a_model_is_one_graph(product: Product, weights: str) -> None:
    trial = trial_of("bf16", weights=weights, activations="int8" if weights == "ternary" else "full")
    trial.model.set_product(product, torch.bfloat16)
    segments = torch.zeros_like(trial.batch.input_ids)
    for options in ({}, {"head": False}, {"segments": segments}):
        torch.compiler.reset()
        with autocast(DEVICE, bf16=True):
            found = torch._dynamo.explain(trial.model)(trial.batch.input_ids, **options)
        assert (found.graph_count, found.graph_break_count) == (1, 0)
    torch.compiler.reset()


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("graphs", GRAPHS)
@pytest.mark.parametrize("product", ["int8", "autocast"])
def test_the_compiled_form_learns_the_same_twice(product: Product, graphs: bool) -> None:
    """Twice, because a CUDA graph overwrites what it returned before."""
    trial = dataclasses.replace(trial_of("bf16"), fused_loss=True)
    trial.model.set_product(product, torch.bfloat16)
    forward = compiled_form(trial.model, graphs=graphs)
    assert refusal(trial, trial.model, forward) is None
    assert refusal(trial, trial.model, forward) is None


def test_weights_of_an_update_with_gradients_in_place() -> None:
    """Two micro-batches add up, whatever made their gradients."""
    trial = trial_of("bf16")
    head = trial.model.lm_head.weight
    once: list[Tensor] = []
    for times in (1, 2):
        trial.model.zero_grad()
        for _ in range(times):
            with autocast(DEVICE, bf16=True):
                loss = terms_of(trial.objective, trial.model, trial.batch, head).sum()
            loss.backward()  # type: ignore[no-untyped-call]
        assert head.grad is not None
        once.append(head.grad.clone())
    torch.testing.assert_close(once[1], 2 * once[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["--train.precision", "bf16", "--train.compile", "off"],
        [
            "--train.precision",
            "bf16",
            "--train.product",
            "autocast",
            "--train.fused",
            "on",
            "--train.compile",
            "off",
        ],
        pytest.param(["--train.precision", "fp16", "--train.product", "int8"], marks=needs_cuda),
        pytest.param(["--train.compile", "graphs"], marks=needs_cuda),
    ],
    ids=" ".join,
)
def test_a_run_trains_and_records_its_formats(tmp_path: Path, words: list[str]) -> None:
    flags = ["--num-steps", 3, "--run-id", "one", "--runs-dir", tmp_path, "--device", DEVICE.type]
    result = run_command(*TINY_TRAIN, *flags, *words)
    assert result.code == 0, result.err
    assert "going on without" not in result.out
    provenance = json.loads((tmp_path / "one" / "meta" / "provenance.json").read_text())
    expected = "float16" if "fp16" in words else "bfloat16"
    assert (provenance["device"], provenance["gradient_dtype"]) == (DEVICE.type, expected)
