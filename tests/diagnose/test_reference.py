"""The independent recomputation agrees with the model that it judges, and is right by itself where that can
be said.
"""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from bitnet.data.stream import Batch
from bitnet.diagnose import reference, reference_updates
from bitnet.diagnose.reference_objectives import wanted
from bitnet.diagnose.watch import PLAIN
from bitnet.nn.config import BitNetConfig
from bitnet.nn.transformer import BitNetTransformer
from bitnet.train.config import TrainConfig

SETTINGS = {**PLAIN, "stage1_end": 1}
VARIANTS: list[dict[str, object]] = [
    {},
    {"sub_norm": True, "activation": "relu2", "embeddings_tied": False},
    {"weights": "full", "activations": "full"},
    {"activations": "full", "num_kv_heads": 4},
]


@pytest.mark.parametrize("changes", VARIANTS)
def test_logits_and_gradients_agree_with_the_model(
    tiny_config: BitNetConfig, changes: dict[str, object]
) -> None:
    torch.manual_seed(2)
    config = dataclasses.replace(tiny_config, **changes)  # type: ignore[arg-type]
    model = BitNetTransformer(config)
    ids, targets = torch.randint(32, (2, 2, 12))
    mask = torch.rand(2, 12) < 0.7
    logits = model(ids)
    loss = (
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        * mask.flatten()
    ).sum() / mask.sum()
    loss.backward()
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    assert torch.allclose(reference.logits(weights, config, ids).float(), logits.detach(), atol=1e-4)
    right = wanted(weights, config, [Batch(ids, targets, mask)], SETTINGS, 1)
    assert math.isclose(right.loss, float(loss.detach()), rel_tol=1e-4)
    for name, weight in model.named_parameters():
        assert weight.grad is not None
        assert float((right.gradients[name] - weight.grad).norm()) < 0.02 * float(
            right.gradients[name].norm()
        ), name


def test_micro_batches_share_one_mean(tiny_model: BitNetTransformer) -> None:
    """Two micro-batches with different numbers of scored tokens give the loss of both as one batch."""
    ids, targets = torch.randint(32, (2, 4, 8))
    mask = torch.ones(4, 8, dtype=torch.bool)
    mask[2:, 3:] = False
    weights = {name: weight.detach() for name, weight in tiny_model.named_parameters()}
    rows = Batch(ids, targets, mask)
    whole = wanted(weights, tiny_model.config, [rows], SETTINGS, 1)
    parts = [rows.select(slice(2)), rows.select(slice(2, None))]
    split = wanted(weights, tiny_model.config, parts, SETTINGS, 1)
    assert math.isclose(whole.loss, split.loss, rel_tol=1e-9)


def test_ternary_by_worked_example() -> None:
    """mean |W| = 0.5: 0.2 is nearer to 0, 0.3 and more is 1."""
    codes, scale = reference.ternary(torch.tensor([[0.2, -0.3, 0.9, -0.6]]), (1,))
    assert codes.tolist() == [[0, -1, 1, -1]]
    assert scale.item() == pytest.approx(0.5)


def test_rotary_depends_on_distance_alone() -> None:
    """The product of a turned query and a turned key is the same wherever the pair stands."""
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 8).expand(2, 6, 1, 8).unsqueeze(1)
    turned_q, turned_k = reference.turn(q, 100.0)[0, :, 0], reference.turn(k, 100.0)[0, :, 0]
    products = [float(turned_q[t] @ turned_k[t - 2]) for t in range(2, 6)]
    assert max(products) - min(products) < 1e-9


@pytest.mark.parametrize("kind", ["two_stage", "linear", "warm_down", "cosine"])
def test_rates_agree_with_the_schedule(kind: str) -> None:
    train = TrainConfig(seq_len=8, batch_size=1, total_steps=60, warmup_steps=7, schedule=kind, stage1_end=25)  # type: ignore[arg-type]
    settings = {**dataclasses.asdict(train), "stage1_end": train.boundary}
    for step in range(1, 61):
        assert reference_updates.rates(settings, step) == pytest.approx(
            tuple(train.rates().rates_at(step)), rel=1e-12
        )


def test_newton_schulz_makes_a_matrix_nearly_orthogonal() -> None:
    torch.manual_seed(0)
    for shape in ((6, 20), (20, 6)):
        values = torch.linalg.svdvals(
            reference_updates.newton_schulz(torch.randn(shape, dtype=torch.float64))
        )
        assert float(values.min()) > 0.6
        assert float(values.max()) < 1.3
