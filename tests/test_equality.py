"""The packed engine equals PyTorch's int8 path on trained models of every family, up to named near-ties."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from bitnet.data.stream import Batch
from bitnet.engine.decoder import PackedDecoder
from bitnet.engine.from_torch import packed
from bitnet.kernels import library
from bitnet.nn.config import BitNetConfig
from bitnet.nn.transformer import BitNetTransformer
from engine_codes import OtherCode, forced, scaled
from equality import (
    Prompt,
    explained,
    explanation,
    forced_rows,
    greedy_texts,
    logit_differences,
    place_in_batch,
    same_sums,
)

pytestmark = pytest.mark.skipif(library.loaded().library is None, reason=library.describe())

FAMILIES: dict[str, dict[str, Any]] = {
    "characters": {},
    "a text vocabulary": {"vocab_size": 4200},
    "sub-norms with squared ReLU": {"sub_norm": True, "activation": "relu2"},
    "untied": {"embeddings_tied": False},
    "full precision": {"weights": "full", "activations": "full"},
}
STOP = 0


def rows_of(vocabulary: int, count: int, seed: int) -> torch.Tensor:
    """Rows of a rule that has to be learned: each number is the sum of the last two, with a few mistakes."""
    generator = np.random.default_rng(seed)
    rows = generator.integers(1, min(vocabulary, 30), (count, 24))
    for place in range(2, rows.shape[1]):
        made = (rows[:, place - 1] + rows[:, place - 2]) % 29 + 1
        rows[:, place] = np.where(generator.random(count) < 0.9, made, rows[:, place])
    return torch.from_numpy(rows)


def trained(updates: int = 60, **changes: Any) -> BitNetTransformer:
    """A model of a family after a second of training."""
    torch.manual_seed(5)
    shape = {"vocab_size": 40, "hidden_size": 48, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2}
    config = BitNetConfig(**{**shape, "ffn_hidden_size": 100, "max_seq_length": 40, **changes})
    model = BitNetTransformer(config)
    model.set_product("int8")
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for update in range(updates):
        rows = rows_of(config.vocab_size, 16, update)
        loss = F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def with_engine(model: BitNetTransformer) -> PackedDecoder:
    return packed(model, head="f32", threads=1)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_trained_model_of_each_family(family: str) -> None:
    model = trained(**FAMILIES[family])
    drop_in = with_engine(model)
    rows = rows_of(40, 32, seed=1000)
    sums = same_sums(model, drop_in, rows)
    assert (sums["sums"] > 0, sums["sums_different"]) == (family != "full precision", 0)

    batch = Batch(rows[:, :-1], rows[:, 1:], torch.ones(rows.shape[0], rows.shape[1] - 1, dtype=torch.bool))
    apart = logit_differences(model, drop_in, [batch])
    assert apart["within"] > 0.9
    assert apart["median"] < 1e-5
    given = forced_rows(model, drop_in, rows[:8].tolist())
    assert given["apart"] < 1e-5
    assert given["from_half"] < 1e-3

    prompts = [Prompt(ids, 16) for ids in rows_of(40, 200, seed=2000)[:, :5].tolist()]
    right, found = (greedy_texts(one, prompts, STOP) for one in (model, drop_in))
    different = [index for index, answer in enumerate(found) if answer != right[index]]
    assert len(different) <= 4
    for index in different:
        one = explained(model, drop_in, prompts, index, (right[index], found[index]))
        assert one["explained"], one


def test_logits_agree_where_the_codes_are_those_of_the_engine() -> None:
    """Read at once, and as decoding reads, in a batch."""
    model = trained(updates=5)
    ids = rows_of(40, 1, seed=3)[0].tolist()
    decoder = with_engine(model)
    engine = decoder.new_rows(1).read({0: ids}, every=True)
    for way in ({}, {"cuts": range(10, len(ids)), "rows": 3, "row": 1}):
        given = forced(model, decoder.weights, ids, **way)  # type: ignore[arg-type]
        assert np.abs(given.logits.numpy() - engine).max() < 1e-5 * np.abs(engine).max()
        assert given.codes == len(ids) * 2 * (3 * 48 + 100)


def test_a_wrong_scale_is_no_near_tie() -> None:
    """The codes that follow from it are not half-way, so that nothing is explained away."""
    model = trained(updates=5)
    drop_in = with_engine(model)
    scale = drop_in.weights.layers[0].down.scale
    scale *= np.float32(2)
    given = forced_rows(model, drop_in, rows_of(40, 2, seed=3).tolist())
    assert given["apart"] > 1e-3
    assert given["from_half"] > 0.1


def test_the_names_of_differences() -> None:
    half_way = {"other_codes": 1, "from_half": 1e-5, "apart_given_codes": 1e-7, "gap_given_codes": -1e-3}
    assert explanation(half_way) == "half-way code"
    assert explanation({**half_way, "from_half": 0.3}) is None
    assert explanation({**half_way, "gap_given_codes": 1e-3}) is None
    assert explanation({**half_way, "apart_given_codes": 1e-3}) is None
    tie = {**half_way, "other_codes": 0, "from_half": 0.0, "gap_given_codes": 1e-7}
    assert explanation(tie) == "tie of logits"
    assert explanation({**tie, "gap_given_codes": 1e-5}) is None


def test_how_far_a_code_is_from_half_way() -> None:
    assert OtherCode("L0_ffn_down", 3, 7, 2, 3, 2.49).from_half == pytest.approx(0.01)
    assert OtherCode("L0_ffn_down", 3, 7, 2, 4, 2.49).from_half == float("inf")


def test_codes_are_found_behind_an_unknown_factor() -> None:
    codes = np.array([[127, -3, 0, 64, 65], [0, 0, 0, 0, 0]], np.int8)
    near = np.array([[127, -2, 0, 64, 66], [0, 0, 0, 0, 0]], np.int8)
    assert np.array_equal(scaled(codes * np.float32(0.0371), near), codes)


def test_which_row_of_a_batch_a_prompt_is() -> None:
    prompts = [Prompt([1] * (2 + index % 2), 4) for index in range(1100)]
    assert place_in_batch(prompts, 0) == (512, 0)
    assert place_in_batch(prompts, 1027) == (38, 1)
