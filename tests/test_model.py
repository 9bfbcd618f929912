"""The model: exact sizes, equality with Llama, causality, cached generation, a sane start, and settings that
are refused.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bitnet.errors import ConfigError
from bitnet.experiments.shapes import SHAPES
from bitnet.generate.decode import generate
from bitnet.generate.sampling import Sampling
from bitnet.nn.config import BitNetConfig, config_from_dict
from bitnet.nn.rotary import rotary_table, rotate
from bitnet.nn.transformer import BitNetTransformer

EXACT = {
    "arithmetic": 3_156_224,
    "tictactoe": 10_634_112,
    "tinystories": 11_408_256,
    "baseline": 95_367_936,
    "bitnut": 132_963_072,
}


@pytest.mark.parametrize("name", EXACT)
def test_parameter_counts_are_exact(name: str) -> None:
    """Counted on the real module, built without memory, and by the formula that is printed at start."""
    with torch.device("meta"):
        model = BitNetTransformer(SHAPES[name])
    assert sum(parameter.numel() for parameter in model.parameters()) == EXACT[name]
    assert SHAPES[name].total_params == EXACT[name]


def test_the_five_shapes_are_declared() -> None:
    assert SHAPES.keys() == EXACT.keys()


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


@pytest.mark.parametrize("name", EXACT)
def test_the_loss_before_training_is_that_of_guessing(name: str) -> None:
    """Within 5% of ln(V). Left at PyTorch's own initialisation a tied model begins at a loss above 100."""
    shape = SHAPES[name]
    if shape.vocab_size > 30_000:
        shape = dataclasses.replace(shape, num_layers=2)  # the loss hangs on the width and the vocabulary
    torch.manual_seed(0)
    model = BitNetTransformer(shape)
    ids = torch.randint(0, shape.vocab_size, (2, 33))
    with torch.no_grad():
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    assert float(loss) == pytest.approx(math.log(shape.vocab_size), rel=0.05)


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


def test_the_rotary_table_by_worked_example() -> None:
    """Head width 4: pair (0, 2) turns by one radian a position, pair (1, 3) by 1/100."""
    cos, sin = rotary_table(4, 3, 10_000.0)
    turned = rotate(torch.tensor([1.0, 1.0, 0.0, 0.0]).view(1, 1, 1, 4), cos[2:], sin[2:]).flatten()
    assert turned.tolist() == pytest.approx([math.cos(2), math.cos(0.02), math.sin(2), math.sin(0.02)])


def test_rotated_products_depend_on_the_distance_only() -> None:
    """What rotary positions are for: q at 7 and k at 5 meet as q at 2 and k at 0."""
    cos, sin = rotary_table(8, 8, 10_000.0)
    q, k = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)

    def product(at: int, other: int) -> float:
        return float(
            (
                rotate(q, cos[at : at + 1], sin[at : at + 1])
                * rotate(k, cos[other : other + 1], sin[other : other + 1])
            ).sum()
        )

    assert product(7, 5) == pytest.approx(product(2, 0), abs=1e-5)


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


@torch.no_grad()
def recomputed(model: BitNetTransformer, ids: Tensor, new: int) -> Tensor:
    """Greedy continuation that reads the whole text again for every token."""
    for _ in range(new):
        ids = torch.cat((ids, model(ids)[:, -1].argmax(-1, keepdim=True)), dim=1)
    return ids


@pytest.mark.parametrize("product", ["float", "int8"])
def test_cached_generation_equals_full_recomputation(tiny_config: BitNetConfig, product: Any) -> None:
    """Up to the very last position the model has."""
    torch.manual_seed(2)
    model = BitNetTransformer(tiny_config)
    model.set_product(product)
    prompts = torch.randint(0, 32, (4, 5))
    assert torch.equal(generate(model, prompts, max_new_tokens=19), recomputed(model, prompts, 19))


def test_sampled_generation_is_repeated_by_its_seed(tiny_model: BitNetTransformer) -> None:
    prompt = torch.randint(0, 32, (1, 3))
    first, again, other = (
        generate(
            tiny_model, prompt, max_new_tokens=12, sampling=Sampling(temperature=1.0, seed=seed)
        ).tolist()
        for seed in (5, 5, 6)
    )
    assert first == again
    assert first != other


def test_a_text_longer_than_the_model_is_refused(tiny_model: BitNetTransformer) -> None:
    with pytest.raises(ConfigError, match="25 tokens do not fit the model's max_seq_length of 24"):
        tiny_model(torch.zeros(1, 25, dtype=torch.int64))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 5}, "model.hidden_size 32 is not divisible by model.num_heads 5"),
        ({"num_kv_heads": 3}, "model.num_heads 4 is not divisible by model.num_kv_heads 3"),
        ({"hidden_size": 36}, "head width 36 / 4 = 9 is odd"),
        ({"num_layers": 0}, "model.num_layers is 0; it must be at least 1"),
        ({"vocab_size": -1}, "model.vocab_size is -1"),
        ({"norm_eps": 0.0}, "model.norm_eps is 0.0; it must be at least 1e-12"),
        ({"rope_theta": math.inf}, "model.rope_theta is inf"),
    ],
)
def test_impossible_shapes_are_refused_with_the_rule(
    tiny_config: BitNetConfig, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(tiny_config, **changes)


def test_a_config_survives_its_json(tiny_config: BitNetConfig) -> None:
    """Derived figures stand beside the fields in config.json and are ignored on the way back."""
    assert (
        config_from_dict({**dataclasses.asdict(tiny_config), "head_dim": 8, "total_params": 1}) == tiny_config
    )


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
