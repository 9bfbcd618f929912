"""AdamW and Muon as one object: who moves what, and a state that continues bit for bit."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from bitnet.nn.transformer import BitNetTransformer
from bitnet.optim import muon
from bitnet.optim.muon import orthogonalize
from bitnet.optim.optimizer import MuonPrecision, OptimizerConfig, Optimizers
from bitnet.optim.schedule import Rates

MUON = OptimizerConfig(kind="muon", adam_beta1=0.9, adam_beta2=0.95, muon_momentum=0.95, muon_lr_ratio=10.0)


def one_update(model: BitNetTransformer, optimizers: Optimizers, seed: int) -> None:
    torch.manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizers.step(Rates(1e-3, 0.1))


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_state_restored_by_name_continues_bit_for_bit(kind: str, tiny_model: BitNetTransformer) -> None:
    config = OptimizerConfig(
        kind=kind, adam_beta1=0.9, adam_beta2=0.95, muon_momentum=0.95, muon_lr_ratio=10.0
    )
    first = Optimizers(tiny_model, config)
    one_update(tiny_model, first, 1)
    copy = BitNetTransformer(tiny_model.config)
    copy.load_state_dict(tiny_model.state_dict())
    second = Optimizers(copy, config)
    second.load_state_tensors({name: tensor.clone() for name, tensor in first.state_tensors().items()})
    one_update(tiny_model, first, 2)
    one_update(copy, second, 2)
    assert all(torch.equal(a, b) for a, b in zip(tiny_model.parameters(), copy.parameters(), strict=True))


def test_muon_moves_the_ternary_matrices_and_adamw_the_rest(tiny_model: BitNetTransformer) -> None:
    optimizers = Optimizers(tiny_model, MUON)
    one_update(tiny_model, optimizers, 0)
    names = optimizers.state_tensors().keys()
    ternary = {
        f"momentum_buffer.{name}"
        for name, p in tiny_model.named_parameters()
        if any(p is layer.weight for layer in tiny_model.bit_linears().values())
    }
    assert {name for name in names if name.startswith("momentum_buffer")} == ternary
    assert "exp_avg.token_embeddings.weight" in names


@pytest.mark.parametrize(
    ("precision", "iterates_in"), [("auto", torch.float32), ("fp32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_the_precision_of_muon_is_a_choice(
    precision: MuonPrecision,
    iterates_in: torch.dtype,
    tiny_model: BitNetTransformer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: set[torch.dtype] = set()

    def watched(matrices: torch.Tensor) -> torch.Tensor:
        seen.add(matrices.dtype)
        return orthogonalize(matrices)

    monkeypatch.setattr(muon, "orthogonalize", watched)
    optimizers = Optimizers(tiny_model, dataclasses.replace(MUON, muon_precision=precision))
    one_update(tiny_model, optimizers, 0)
    assert seen == {iterates_in}
    assert {parameter.dtype for parameter in tiny_model.parameters()} == {torch.float32}


def test_decay_leaves_norm_weights_alone(tiny_model: BitNetTransformer) -> None:
    optimizers = Optimizers(
        tiny_model,
        OptimizerConfig(kind="adamw", adam_beta1=0.9, adam_beta2=0.95, muon_momentum=0.95, muon_lr_ratio=1.0),
    )
    before = tiny_model.token_embeddings.weight.detach().clone()
    for parameter in tiny_model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizers.step(Rates(0.1, 0.5))
    assert torch.equal(tiny_model.final_norm.weight, torch.ones(32))
    assert torch.allclose(tiny_model.token_embeddings.weight, before * (1 - 0.1 * 0.5))
