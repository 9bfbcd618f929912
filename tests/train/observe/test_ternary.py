"""Statistics of ternary codes, by worked example."""

from __future__ import annotations

import pytest
import torch

from bitnet.nn.transformer import BitNetTransformer
from bitnet.train.observe.ternary import activation_ranges, ternary_codes, ternary_statistics, zero_share

IDS = torch.arange(16).view(2, 8)


def test_shares_flips_and_dead_lines_of_a_known_matrix(tiny_model: BitNetTransformer) -> None:
    down = tiny_model.blocks[0].feedforward.down  # (32, 48)
    before = ternary_codes(tiny_model)
    with torch.no_grad():
        down.weight.fill_(1.0)
        down.weight[0] = 0.0  # a dead row
        down.weight[:, 0] = 0.0  # a dead column
        down.weight[1, 1] = -1.0
    row = ternary_statistics(tiny_model, ternary_codes(tiny_model), before, IDS)
    total, zeros = 32 * 48, 32 + 48 - 1
    assert row["L0_ffn_down_zero_pct"] == pytest.approx(zeros / total)
    assert row["L0_ffn_down_neg1_pct"] == pytest.approx(1 / total)
    assert row["L0_ffn_down_pos1_pct"] == pytest.approx((total - zeros - 1) / total)
    assert (row["L0_ffn_down_dead_rows"], row["L0_ffn_down_dead_cols"]) == (1, 1)
    assert row["L0_ffn_down_scale"] == pytest.approx([(total - zeros) / total])
    assert row["L0_ffn_down_flipped_pct"] == pytest.approx(
        float((before["L0_ffn_down"] != ternary_codes(tiny_model)["L0_ffn_down"]).float().mean())
    )
    assert row["L1_ffn_down_flipped_pct"] == 0.0


def test_summary_weights_matrices_by_size(tiny_model: BitNetTransformer) -> None:
    codes = ternary_codes(tiny_model)
    row = ternary_statistics(tiny_model, codes, codes, IDS)
    everything = torch.cat([matrix.flatten() for matrix in codes.values()])
    assert row["zero_pct"] == pytest.approx(float((everything == 0).float().mean()), abs=1e-6)
    assert row["zero_pct"] == pytest.approx(zero_share(tiny_model), abs=1e-6)
    assert row["neg1_pct"] + row["zero_pct"] + row["pos1_pct"] == pytest.approx(1.0)
    assert row["flipped_pct"] == 0.0
    assert len(row["L0_attn_qkv_scale"]) == 3
    assert len(row["L0_ffn_gate_up_scale"]) == 2


def test_activation_ranges_are_of_the_inputs_and_leave_no_hooks(tiny_model: BitNetTransformer) -> None:
    ranges = activation_ranges(tiny_model, IDS)
    with torch.no_grad():
        normed = tiny_model.blocks[0].pre_attn_norm(tiny_model.token_embeddings(IDS))
    assert ranges["L0_attn_qkv"]["act_absmax"] == pytest.approx(float(normed.abs().max()), rel=1e-5)
    assert ranges["L0_attn_qkv"]["act_clip_pct"] >= 1 / 32  # absmax puts at least one code of 32 at the limit
    assert not any(layer._forward_pre_hooks for layer in tiny_model.bit_linears().values())
