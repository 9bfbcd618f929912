"""The model: documented names, equality with Llama, causality, the cache, and several texts in one row."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bitnet.errors import ConfigError
from bitnet.nn.config import BitNetConfig
from bitnet.nn.transformer import BitNetTransformer, segment_mask
from conftest import needs_compiler


def test_the_parts_of_the_model_have_their_documented_names(tiny_model: BitNetTransformer) -> None:
    block = {
        "pre_attn_norm",
        "attention.qkv_proj",
        "attention.out_proj",
        "pre_ffn_norm",
        "feedforward.gate_up",
        "feedforward.down",
    }
    expected = {f"blocks.{layer}.{part}.weight" for layer in range(2) for part in block}
    assert {name for name, _ in tiny_model.named_parameters()} == {
        "token_embeddings.weight",
        "final_norm.weight",
        *expected,
    }
    assert list(tiny_model.bit_linears()) == [
        f"L{i}_{part}" for i in range(2) for part in ("attn_qkv", "attn_out", "ffn_gate_up", "ffn_down")
    ]


def llama_with_our_weights(model: BitNetTransformer) -> Any:
    """transformers' Llama of the same shape, given our weights with the fused projections taken apart."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = model.config
    settings = LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.ffn_hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        max_position_embeddings=config.max_seq_length,
        rms_norm_eps=config.norm_eps,
        hidden_act="silu",
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        tie_word_embeddings=config.embeddings_tied,
        attention_bias=False,
        mlp_bias=False,
        attn_implementation="eager",
    )
    weights = {
        "model.embed_tokens.weight": model.token_embeddings.weight,
        "model.norm.weight": model.final_norm.weight,
    }
    weights["lm_head.weight"] = model.lm_head.weight
    for index, block in enumerate(model.blocks):
        q, k, v = block.attention.qkv_proj.weight.split(block.attention.qkv_proj.rows)
        gate, up = block.feedforward.gate_up.weight.chunk(2)
        parts = {
            "self_attn.q_proj": q,
            "self_attn.k_proj": k,
            "self_attn.v_proj": v,
            "self_attn.o_proj": block.attention.out_proj.weight,
            "mlp.gate_proj": gate,
            "mlp.up_proj": up,
            "mlp.down_proj": block.feedforward.down.weight,
            "input_layernorm": block.pre_attn_norm.weight,
            "post_attention_layernorm": block.pre_ffn_norm.weight,
        }
        weights |= {f"model.layers.{index}.{name}.weight": weight for name, weight in parts.items()}
    llama = LlamaForCausalLM(settings).eval()
    missing = llama.load_state_dict({name: weight.detach().clone() for name, weight in weights.items()})
    assert not missing.missing_keys
    return llama


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{}, {"embeddings_tied": False, "rope_theta": 500_000.0}, {"num_kv_heads": 4}, {"num_kv_heads": 1}],
)
def test_with_full_precision_weights_it_is_llama(tiny_config: BitNetConfig, changes: dict[str, Any]) -> None:
    """Rotary positions, grouped-query attention, norms and SwiGLU, against an implementation that is not
    ours.
    """
    torch.manual_seed(0)
    model = BitNetTransformer(dataclasses.replace(tiny_config, weights="full", activations="full", **changes))
    with torch.no_grad():
        for parameter in model.parameters():  # far from the start, so that every part matters
            parameter.copy_(torch.randn_like(parameter) * (0.3 if parameter.dim() == 2 else 1.0))
    ids = torch.randint(0, 32, (2, 24))
    with torch.no_grad():
        torch.testing.assert_close(
            model(ids), llama_with_our_weights(model)(ids).logits, rtol=1e-4, atol=1e-4
        )


def variants() -> list[Any]:
    """Every option that changes the forward pass."""
    changes: list[dict[str, Any]] = [
        {},
        {"sub_norm": True, "activation": "relu2", "embeddings_tied": False},
        {"weights": "full"},
        {"activations": "full"},
    ]
    return [pytest.param(change, id=",".join(change) or "plain") for change in changes]


@pytest.mark.parametrize("changes", variants())
def test_no_logit_sees_a_later_token(tiny_config: BitNetConfig, changes: dict[str, Any]) -> None:
    model = BitNetTransformer(dataclasses.replace(tiny_config, **changes))
    ids = torch.randint(0, 32, (1, 12))
    changed = ids.clone()
    changed[0, 7] = (ids[0, 7] + 1) % 32
    with torch.no_grad():
        before, after = model(ids), model(changed)
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.equal(before[:, 7:], after[:, 7:])


@pytest.mark.parametrize("changes", variants())
def test_reading_in_pieces_through_the_cache_equals_reading_at_once(
    tiny_config: BitNetConfig, changes: dict[str, Any]
) -> None:
    """A long piece, one token, and a piece on top of a past: the three shapes of the attention mask."""
    model = BitNetTransformer(dataclasses.replace(tiny_config, **changes))
    ids = torch.randint(0, 32, (2, 12))
    cache = model.new_cache(2)
    with torch.no_grad():
        pieces = [model(ids[:, start:end], cache) for start, end in ((0, 5), (5, 6), (6, 12))]
        torch.testing.assert_close(torch.cat(pieces, dim=1), model(ids), rtol=1e-4, atol=1e-5)


def test_a_text_longer_than_the_model_is_refused(tiny_model: BitNetTransformer) -> None:
    with pytest.raises(ConfigError, match="25 tokens do not fit the model's max_seq_length of 24"):
        tiny_model(torch.zeros(1, 25, dtype=torch.int64))


def test_a_tied_head_is_the_embedding_itself(tiny_config: BitNetConfig) -> None:
    tied, untied = (
        BitNetTransformer(tiny_config),
        BitNetTransformer(dataclasses.replace(tiny_config, embeddings_tied=False)),
    )
    assert tied.lm_head.weight is tied.token_embeddings.weight
    assert untied.lm_head.weight is not untied.token_embeddings.weight


def test_every_parameter_learns(tiny_config: BitNetConfig) -> None:
    """No part is cut off from the loss, whichever options are on."""
    for changes in ({}, {"sub_norm": True, "activation": "relu2", "embeddings_tied": False}):
        model = BitNetTransformer(dataclasses.replace(tiny_config, **changes))
        ids = torch.randint(0, 32, (2, 9))
        F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert float(parameter.grad.abs().sum()) > 0, name


@pytest.fixture
def row() -> Tensor:
    return torch.randint(0, 32, (2, 12), generator=torch.Generator().manual_seed(3))


SEGMENTS = torch.tensor([[0] * 5 + [1] * 7, [0] * 3 + [1] * 4 + [2] * 5])


def test_the_mask_of_a_worked_example() -> None:
    """Two texts of two tokens: each token sees itself and, inside its text, what came before."""
    expected = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    assert segment_mask(torch.tensor([[0, 0, 1, 1]])).int().tolist() == [[expected]]


def test_one_segment_is_a_row_without_segments(tiny_model: BitNetTransformer, row: Tensor) -> None:
    plain, one = tiny_model(row), tiny_model(row, segments=torch.zeros_like(row))
    torch.testing.assert_close(plain, one, rtol=1e-4, atol=1e-4)


def test_nothing_leaks(tiny_model: BitNetTransformer, row: Tensor) -> None:
    """Other tokens in one segment change not a single bit of the logits of the others; without segments they
    do.
    """
    changed = row.clone()
    changed[0, :5] = (changed[0, :5] + 7) % 32
    before, after = tiny_model(row, segments=SEGMENTS), tiny_model(changed, segments=SEGMENTS)
    assert torch.equal(before[0, 5:], after[0, 5:])
    assert torch.equal(before[1], after[1])
    assert not torch.equal(before[0, :5], after[0, :5])
    assert not torch.equal(tiny_model(row)[0, 5:], tiny_model(changed)[0, 5:])


def test_a_text_reads_the_same_wherever_it_stands(tiny_model: BitNetTransformer, row: Tensor) -> None:
    """Rotary positions are relative: alone in a row a text gets the logits that it gets behind another
    one.
    """
    tiny_model.set_product("float")
    packed = tiny_model(row, segments=SEGMENTS)
    for index, first, last in ((0, 0, 5), (0, 5, 12), (1, 3, 7), (1, 7, 12)):
        alone = tiny_model(row[index : index + 1, first:last])[0]
        close = torch.isclose(packed[index, first:last], alone, rtol=1e-3, atol=1e-3)
        assert (
            close.float().mean() > 0.95
        )  # an activation on the edge of two int8 codes may round the other way


def test_gradients_do_not_leak_either(tiny_model: BitNetTransformer, row: Tensor) -> None:
    """A loss on the second text gives no gradient to the embedding of a token that only the first one has."""
    ids = torch.tensor([[1, 2, 3, 4, 5, 6]])
    logits = tiny_model(ids, segments=torch.tensor([[0, 0, 0, 1, 1, 1]]))
    gathered = torch.autograd.grad(logits[0, 4, 9], tiny_model.token_embeddings.weight)[0]
    assert gathered[[1, 2, 3]].abs().sum() == 0
    assert gathered[[4, 5]].abs().sum() > 0


@pytest.mark.slow
@needs_compiler
def test_compiled_rows_may_have_any_length(tiny_model: BitNetTransformer) -> None:
    """After a second length torch compiles for lengths that vary, where attention takes no symbol."""
    torch.compiler.reset()
    compiled = torch.compile(tiny_model, fullgraph=True)
    for length in (4, 6, 8, 1):
        ids = torch.arange(2 * length).view(2, length) % tiny_model.config.vocab_size
        assert torch.allclose(compiled(ids), tiny_model(ids), atol=1e-5)
