"""Looking from outside: the matrix that a layer multiplies by, what passes through the parts, and what rows a
loop is shown.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from bitnet.data.stream import Batch
from bitnet.diagnose import reference
from bitnet.diagnose.check_numerics import layers, off_the_edges
from bitnet.diagnose.trace import multiplied_by, off, random_ids, traced
from bitnet.diagnose.watch import Narrow, OneBatch, Watched
from bitnet.nn.bitlinear import BitLinear
from bitnet.nn.quantize import quantize_activations
from bitnet.nn.transformer import BitNetTransformer
from bitnet.optim.optimizer import OptimizerConfig, Optimizers
from bitnet.optim.schedule import Rates


class Counting:
    """Row n is n, n + 1, n + 2, ..."""

    def rows(self, numbers: Any) -> Batch:
        tokens = torch.from_numpy(numbers)[:, None] + torch.arange(9)
        return Batch(tokens[:, :-1], tokens[:, 1:], torch.arange(8).expand(len(numbers), 8) > 4)

    def epochs(self, rows: int) -> float:
        return float(rows)

    def fingerprint(self) -> dict[str, Any]:
        return {}


def test_the_matrix_is_found_by_unit_vectors() -> None:
    torch.manual_seed(0)
    layer = BitLinear(24, (16, 8))
    torch.nn.init.normal_(layer.weight)
    used = multiplied_by(layer, 24, layer.weight)
    assert used.shape == (24, 24)
    assert torch.equal(used.sign(), layer.weight_quantized.float())
    for part, latent in zip(used.split([16, 8]), layer.weight.detach().split([16, 8]), strict=True):
        assert math.isclose(float(part.abs().max()), float(latent.abs().mean()), rel_tol=1e-5)


def test_every_part_is_traced_and_nothing_stays_hooked(tiny_model: BitNetTransformer) -> None:
    ids = random_ids(32, 2, 6, torch.device("cpu"))
    logits, passed = traced(tiny_model, ids)
    assert {
        "token_embeddings",
        "blocks.1.attention.qkv_proj",
        "blocks.0.feedforward.down",
        "final_norm",
        "lm_head",
    } <= passed.keys()
    assert torch.equal(passed["lm_head"].left, logits)
    assert not any(module._forward_hooks for module in tiny_model.modules())


def test_distance_is_infinite_for_what_is_not_a_number() -> None:
    one = torch.ones(3)
    assert off(one, one) == 0
    assert math.isclose(off(1.5 * one, one), 0.5, rel_tol=1e-6)
    assert off(torch.tensor([1.0, math.nan, 1.0]), one) == math.inf
    assert off(torch.ones(2), one) == math.inf


def test_narrow_rows_keep_something_scored() -> None:
    """The first four columns of these rows score nothing; then everything is scored, rather than nothing."""
    source = Narrow(Counting(), 4)
    batch = source.rows(np.array([3, 5]))
    assert batch.input_ids.tolist() == [[3, 4, 5, 6], [5, 6, 7, 8]]
    assert bool(batch.loss_mask.all())
    assert source.asked == [[3, 5]]
    assert Narrow(Counting(), 7).rows(np.array([3])).loss_mask.sum() == 2


def test_one_batch_is_the_same_at_every_update() -> None:
    source = OneBatch(Counting().rows(np.array([7, 8])))
    assert source.rows(np.arange(100, 103)).input_ids[:, 0].tolist() == [7, 8, 7]


def test_watched_optimizers_record_and_change_nothing(tiny_model: BitNetTransformer) -> None:
    config = OptimizerConfig(
        kind="adamw", adam_beta1=0.9, adam_beta2=0.95, muon_momentum=0.95, muon_lr_ratio=1.0
    )
    watched = Watched(tiny_model, Optimizers(tiny_model, config))
    tiny_model(torch.arange(8)[None]).logsumexp(-1).sum().backward()
    before = tiny_model.final_norm.weight.detach().clone()
    watched.step(Rates(0.01, 0.0))
    (update,) = watched.moves
    assert update.rates == Rates(0.01, 0.0)
    assert torch.equal(update.before["final_norm.weight"], before)
    assert torch.equal(update.after["final_norm.weight"], tiny_model.final_norm.weight.detach())
    assert update.gradients["final_norm.weight"] is not None
    assert tiny_model.final_norm.weight.grad is None


def test_inputs_are_moved_off_the_edges_between_codes_and_nowhere_else() -> None:
    """Float32 rounds a value on an edge either way, which in a narrow layer is more than a formula may be
    off.
    """
    x = torch.randn(16, 768, generator=torch.Generator().manual_seed(1)) * torch.logspace(-1, 1, 16)[:, None]
    moved = off_the_edges(x)
    units = moved.double() / (moved.double().abs().amax(dim=1, keepdim=True) / 127)
    assert float((units - torch.floor(units) - 0.5).abs().min()) > 0.01
    assert float((moved - x).abs().max() / x.abs().max()) < 0.02 / 127 * 1.01
    assert float((moved == x).float().mean()) > 0.9
    assert torch.equal(quantize_activations(moved).codes.double(), torch.round(units))


def test_a_weight_on_the_edge_of_a_code_is_no_fault_of_the_inputs(tiny_config: Any, monkeypatch: Any) -> None:
    """One code that float64 rounds the other way: the inputs are judged by the matrix that really
    multiplies.
    """
    model = BitNetTransformer(tiny_config)
    real = reference.effective

    def one_other(weight: Any, rows: Any, config: Any) -> Any:
        found = real(weight, rows, config).clone()
        found[0, 0] = 0.0 if found[0, 0] else found.abs().max()
        return found

    monkeypatch.setattr(reference, "effective", one_other)
    checks = {check.name: check for check in layers(model)}
    assert checks["inputs quantized to int8 per token"].ok
    assert not checks["codes are those of the present weights"].ok
