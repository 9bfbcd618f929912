"""A model's weights by name: all of them, of the right shape, in the formats that were asked for."""

from __future__ import annotations

from typing import Any

import pytest
from models import needs_kernels, small_model

from bitnet.engine.from_torch import packed
from bitnet.engine.weights import default_head, pack_weights, parameter_shapes
from bitnet.errors import DataError

pytestmark = needs_kernels


@pytest.mark.parametrize("shape", [{}, {"sub_norm": True}, {"embeddings_tied": False}])
def test_names_and_shapes_are_those_of_the_model(shape: dict[str, Any]) -> None:
    model = small_model(**shape)
    assert parameter_shapes(model.config) == {
        name: tuple(weight.shape) for name, weight in model.named_parameters()
    }


def test_weights_of_another_model_are_refused() -> None:
    model = small_model()
    arrays = {name: weight.detach().numpy() for name, weight in model.named_parameters()}
    name = "blocks.1.attention.qkv_proj.weight"
    for wrong in (
        {key: value for key, value in arrays.items() if key != name},
        arrays | {name: arrays[name][:-1]},
    ):
        with pytest.raises(DataError, match=f"{name} differs"):
            pack_weights(model.config, wrong, head="f32")
    with pytest.raises(DataError, match="stranger differs"):
        pack_weights(model.config, arrays | {"stranger": arrays[name]}, head="f32")


@pytest.mark.parametrize("name", ["final_norm.weight", "blocks.0.feedforward.down.weight"])
def test_weights_that_are_not_finite_or_no_numbers_are_refused(name: str) -> None:
    model = small_model()
    arrays = {key: weight.detach().numpy().copy() for key, weight in model.named_parameters()}
    with pytest.raises(DataError, match=f"{name} holds values that are not finite"):
        pack_weights(model.config, arrays | {name: arrays[name].astype(int)}, head="f32")
    arrays[name].flat[3] = float("inf")
    with pytest.raises(DataError, match=f"{name} holds values that are not finite"):
        pack_weights(model.config, arrays, head="f32")


def formats(head: Any, **shape: Any) -> tuple[str, str, str]:
    weights = packed(small_model(**shape), head=head).weights
    return weights.embeddings.format, weights.head.format, weights.layers[0].down.format


def test_each_part_has_the_format_that_is_asked_for() -> None:
    assert formats("f32") == ("f32", "f32", "ternary")
    assert formats("int8") == ("int8", "int8", "ternary")
    assert formats("int4") == ("int8", "int4", "ternary")
    assert formats("int4", embeddings_tied=False) == ("int8", "int4", "ternary")
    assert formats("f32", weights="full", activations="full") == ("f32", "f32", "f32")
    assert formats("int8", weights="full") == ("int8", "int8", "bf16")
    assert formats("bf16", activations="full") == ("bf16", "bf16", "int8")


def test_a_tied_head_is_kept_once_and_codes_at_two_bits() -> None:
    model = small_model(hidden_size=64, ffn_hidden_size=96)
    weights = packed(model, head="int8").weights
    assert weights.head is weights.embeddings
    ternary = sum(layer.weight.numel() for layer in model.bit_linears().values())
    scales = sum(4 * layer.out_features for layer in model.bit_linears().values())
    assert weights.nbytes == ternary / 4 + scales + 64 * 64 + 4 * 50  # the head's rows are padded to 16


def test_a_large_vocabulary_gets_an_int8_head() -> None:
    assert default_head(small_model().config) == "f32"
    assert default_head(small_model(vocab_size=8000).config) == "int8"
