"""Cross-entropy together with the product of the head: equal to the plain form, and without its memory."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bitnet.data.stream import Batch
from bitnet.kernels import passes
from bitnet.nn.config import BitNetConfig
from bitnet.nn.transformer import BitNetTransformer
from bitnet.train import device as machines
from bitnet.train import head_loss as module
from bitnet.train.config import TrainConfig
from bitnet.train.head_loss import head_loss
from bitnet.train.loop import autocast
from bitnet.train.objective import NextToken, Preference, summed_loss, terms_of
from bitnet.train.trial import Trial, loss_refusal
from conftest import TINY_TRAIN, Command, needs_compiler

CPU = torch.device("cpu")
VOCABULARY, WIDTH = 301, 24


def states(rows: int = 3, tokens: int = 37) -> tuple[Tensor, Tensor, Batch]:
    """Hidden states, a head, and targets of which about a third is not scored."""
    generator = torch.Generator().manual_seed(5)
    hidden = torch.randn(rows, tokens, WIDTH, generator=generator)
    head = torch.randn(VOCABULARY, WIDTH, generator=generator) / 5
    ids = torch.randint(0, VOCABULARY, (rows, tokens), generator=generator)
    return hidden, head, Batch(ids, ids, torch.rand(rows, tokens, generator=generator) < 0.7)


def gradients(fused: bool, bf16: bool, factor: float = 0.25) -> list[Tensor]:
    """Loss, and its gradient times a factor for both inputs."""
    hidden, head, batch = states()
    hidden.requires_grad_()
    head.requires_grad_()
    with autocast(CPU, bf16):
        loss = (
            head_loss(hidden, head, batch.targets, batch.loss_mask)
            if fused
            else summed_loss(F.linear(hidden, head), batch)
        )
    (loss * factor).backward()  # type: ignore[no-untyped-call]
    assert hidden.grad is not None
    assert head.grad is not None
    return [loss.detach(), hidden.grad, head.grad]


@pytest.mark.parametrize("part_bytes", [1, 1 << 14, 1 << 26])
@pytest.mark.parametrize(("bf16", "unit"), [(False, 2**-20), (True, 2**-8)])
def test_loss_and_gradients_are_those_of_the_plain_form(
    monkeypatch: pytest.MonkeyPatch, part_bytes: int, bf16: bool, unit: float
) -> None:
    """One token at a time, some, or all at once."""
    monkeypatch.setattr(module, "PART_BYTES", part_bytes)
    for fused, plain in zip(gradients(True, bf16), gradients(False, bf16), strict=True):
        assert fused.dtype == plain.dtype == torch.float32
        assert float((fused - plain).norm()) <= unit * float(plain.norm())
    hidden = gradients(True, bf16)[1]
    assert bool((hidden[~states()[2].loss_mask] == 0).all())


def test_no_tensor_is_as_large_as_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple) else (out,):
                if isinstance(tensor, Tensor):
                    self.size = max(self.size, tensor.numel())
            return out

    monkeypatch.setattr(module, "PART_BYTES", VOCABULARY * 4 * 8)
    sizes = {}
    for fused in (False, True):
        with Largest() as largest:
            gradients(fused, bf16=False)
        sizes[fused] = largest.size
    assert sizes[False] == 3 * 37 * VOCABULARY
    assert sizes[True] == VOCABULARY * WIDTH


def test_nothing_is_kept_where_nothing_learns() -> None:
    hidden, head, batch = states()
    loss = head_loss(hidden, head, batch.targets, batch.loss_mask)
    assert float(loss) == pytest.approx(float(summed_loss(F.linear(hidden, head), batch)), rel=1e-6)
    assert not loss.requires_grad


def model_and_batch(config: BitNetConfig) -> tuple[BitNetTransformer, Batch]:
    torch.manual_seed(2)
    ids = torch.randint(0, config.vocab_size, (2, 9))
    return BitNetTransformer(config), Batch(ids, ids.roll(-1, 1), torch.rand(2, 9) < 0.8)


def learned(
    model: BitNetTransformer, forward: Any, batch: Batch, bf16: bool, fused: bool
) -> dict[str, Tensor]:
    """Loss and gradients of a whole model, whose head may be its embedding."""
    model.zero_grad()
    with autocast(CPU, bf16):
        terms = terms_of(NextToken(), forward, batch, model.lm_head.weight if fused else None)
    terms.sum().backward()  # type: ignore[no-untyped-call]
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return {"loss": terms[0].detach(), **{name: grad.clone() for name, grad in found.items()}}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bf16", [False, True])
def test_a_model_learns_the_same(tiny_config: BitNetConfig, tied: bool, bf16: bool) -> None:
    model, batch = model_and_batch(dataclasses.replace(tiny_config, embeddings_tied=tied))
    plain, fused = (learned(model, model, batch, bf16, fused) for fused in (False, True))
    assert plain.keys() == fused.keys()
    for name, value in plain.items():
        unit = 2**-6 if bf16 else 2**-18
        assert float((fused[name] - value).norm()) <= unit * float(value.norm()) + 1e-7, name


@pytest.mark.slow
@needs_compiler
def test_a_compiled_model_learns_the_same(tiny_config: BitNetConfig) -> None:
    model, batch = model_and_batch(dataclasses.replace(tiny_config, num_layers=1))
    plain = learned(model, model, batch, bf16=False, fused=False)
    compiled = learned(model, torch.compile(model, fullgraph=True), batch, bf16=False, fused=True)
    for name, value in plain.items():
        assert float((compiled[name] - value).norm()) <= 0.01 * float(value.norm()) + 1e-7, name


def test_what_needs_logits_gets_them(tiny_config: BitNetConfig) -> None:
    """Unlikelihood and preferences stay with the plain form, also where the fused one is on."""
    model, batch = model_and_batch(tiny_config)
    batch = batch._replace(reference=torch.tensor([-9.0, -8.0]))
    for objective in (NextToken(0.5, 4), Preference(0.1)):
        terms = terms_of(objective, model, batch, model.lm_head.weight)
        assert torch.equal(terms, objective.terms(model(batch.input_ids), batch))


def test_auto_takes_it_for_large_vocabularies_and_a_run_goes_on_as_it_was(tiny_config: BitNetConfig) -> None:
    train = TrainConfig(seq_len=8, batch_size=2, total_steps=1)
    large = dataclasses.replace(tiny_config, vocab_size=2048)

    def chosen(model: BitNetConfig, before: dict[str, Any] | None = None, **changes: Any) -> bool:
        config = dataclasses.replace(train, **changes)
        return machines.choose_machine(config, CPU, before, model).fused_loss

    assert chosen(large)
    assert not chosen(tiny_config)
    assert chosen(tiny_config, fused="on")
    assert not chosen(large, fused="off")
    assert not chosen(large, fused="on", objective="preference")
    old = {"linear_product": "float", "gradient_dtype": "float32"}
    assert not chosen(large, old)
    assert chosen(tiny_config, {**old, "fused_loss": True})


@pytest.mark.slow
def test_a_wrong_fused_loss_is_not_used(
    bitnet: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = passes.cross_entropy

    def doubled(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        losses = right(logits, targets, weights)
        logits *= 2
        return losses

    words = [*TINY_TRAIN, "--num-steps", 2, "--runs-dir", tmp_path, "--train.fused", "on"]
    for name in ("right", "wrong"):
        if name == "wrong":
            monkeypatch.setattr(passes, "cross_entropy", doubled)
        result = bitnet(*words, "--run-id", name)
        assert result.code == 0, result.err
        told = (
            "the fused loss differs from the plain one by more than rounding: the gradient of the"
            in result.out
        )
        used = json.loads((tmp_path / name / "meta" / "provenance.json").read_text())["fused_loss"]
        assert (told, used) == ((True, False) if name == "wrong" else (False, True))


def test_the_trial_names_what_differs(tiny_config: BitNetConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = model_and_batch(tiny_config)
    trial = Trial(model, batch, NextToken(), bf16=False)
    assert loss_refusal(trial) is None
    assert loss_refusal(dataclasses.replace(trial, bf16=True)) is None
    monkeypatch.setattr(passes, "cross_entropy", lambda logits, targets, weights: torch.zeros(len(logits)))
    assert "the loss is off by" in str(loss_refusal(trial)) or "gradient" in str(loss_refusal(trial))
