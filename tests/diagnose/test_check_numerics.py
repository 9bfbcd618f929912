"""What the checks of the forward pass compute, on a tiny model with one thing wrong at a time."""

from __future__ import annotations

import torch

from bitnet.diagnose import check_numerics, check_start, reference
from bitnet.diagnose.finding import Check
from bitnet.diagnose.trace import random_ids, traced, weights_of
from bitnet.nn.transformer import BitNetTransformer


def failed(checks: list[Check]) -> set[str]:
    return {check.name for check in checks if not check.ok}


def test_a_healthy_model_passes(tiny_model: BitNetTransformer) -> None:
    ids = random_ids(tiny_model.config.vocab_size, 2, 12, torch.device("cpu"))
    logits, passed = traced(tiny_model, ids)
    checks = [
        *check_numerics.stored(tiny_model),
        *check_numerics.layers(tiny_model),
        *check_numerics.parts([(tiny_model, logits, passed)], ids),
        *check_numerics.whole(tiny_model, ids, logits),
        *check_numerics.order_of_tokens(tiny_model, ids, logits),
        *check_start.first_logits(tiny_model),
    ]
    assert failed(checks) == set()


def test_weights_that_are_not_finite_or_coarse_are_named(tiny_model: BitNetTransformer) -> None:
    with torch.no_grad():
        tiny_model.blocks[0].attention.qkv_proj.weight[0, 0] = torch.nan
        down = tiny_model.blocks[1].feedforward.down.weight
        down.copy_(down.bfloat16())
    finite, precise, *others = check_numerics.stored(tiny_model)
    assert finite.detail == "not finite: blocks.0.attention.qkv_proj.weight"
    assert precise.detail == "stored or rounded to fewer bits: blocks.1.feedforward.down.weight"
    assert failed(others) == set()


def test_other_logits_than_the_parts_give_are_seen(tiny_model: BitNetTransformer) -> None:
    ids = random_ids(tiny_model.config.vocab_size, 2, 12, torch.device("cpu"))
    logits, passed = traced(tiny_model, ids)
    assert failed(list(check_numerics.parts([(tiny_model, 2 * logits, passed)], ids))) == {
        "head as in the papers"
    }
    assert failed(list(check_numerics.whole(tiny_model, ids, 2 * logits))) == {
        "logits as in the papers",
        "the same input gives the same logits",
    }


def test_a_model_that_begins_sure_is_seen(tiny_model: BitNetTransformer) -> None:
    with torch.no_grad():
        tiny_model.final_norm.weight.mul_(1000)
    assert failed(list(check_start.first_logits(tiny_model))) == {
        "step-0 loss is ln(V)",
        "logit spread at step 0",
    }


def test_matrices_that_begin_alike_are_named(tiny_model: BitNetTransformer) -> None:
    parts = check_start.matrices(weights_of(tiny_model), tiny_model.config)
    assert check_start.differ(parts).ok
    parts["a copy"] = -3 * next(iter(parts.values()))
    found = check_start.differ(parts)
    assert not found.ok
    assert "and a copy: both begin with the same numbers" in found.detail


def test_rows_of_a_projection_in_either_spelling(tiny_model: BitNetTransformer) -> None:
    config = tiny_model.config
    for name, layer in tiny_model.bit_linears().items():
        assert sum(reference.matrix_rows(config, name)) == layer.out_features
    for name, weight in weights_of(tiny_model).items():
        if name.startswith("blocks.") and weight.dim() == 2:
            assert sum(reference.matrix_rows(config, name)) == len(weight)
