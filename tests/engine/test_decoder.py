"""The packed engine computes what the PyTorch model computes, for every feature, format, and way to batch."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from models import needs_kernels, random_ids, small_model, torch_logits

from bitnet.engine import decoder as engine
from bitnet.engine.decoder import PackedDecoder, rotary_halves
from bitnet.engine.from_torch import packed
from bitnet.errors import ConfigError, DataError
from bitnet.kernels import library
from bitnet.nn.rotary import rotary_table

pytest_plugins = ["kernel_paths"]  # fixtures: path, use
pytestmark = needs_kernels


def difference(found: Any, expected: Any) -> float:
    """Of two sets of logits, as a share of the largest."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize(
    ("activation", "sub_norm", "embeddings_tied", "num_kv_heads"),
    list(itertools.product(("silu", "relu2"), (False, True), (False, True), (1, 4))),
)
def test_a_ternary_model_has_the_logits_of_the_int8_path(
    activation: str, sub_norm: bool, embeddings_tied: bool, num_kv_heads: int
) -> None:
    """Sums are equal integers. The sum of a norm is rounded in another order than torch's, so that now and
    then an input that is almost half-way gets the next code; one such code changes the logits of the tokens
    that see it by up to a hundredth, and the other tokens agree to the last digits.
    """
    shape = {"activation": activation, "sub_norm": sub_norm, "embeddings_tied": embeddings_tied}
    model = small_model(**shape, num_kv_heads=num_kv_heads)
    ids = random_ids(model, 60)
    logits = packed(model, head="f32").new_rows(1).read({0: ids}, every=True)
    expected = torch_logits(model, ids)
    per_token = np.abs(logits - expected).max(axis=1) / np.abs(expected).max()
    assert np.median(per_token) < 1e-6
    assert (per_token < 1e-3).mean() > 0.8
    assert per_token.max() < 2e-2
    assert np.array_equal(logits.argmax(-1), expected.argmax(-1))


@pytest.mark.parametrize(
    ("weights", "activations", "limit"),
    [("ternary", "full", 1e-3), ("full", "full", 1e-5), ("full", "int8", 2e-2)],
)
@pytest.mark.parametrize("sub_norm", [False, True])
def test_other_weights_and_activations(weights: str, activations: str, limit: float, sub_norm: bool) -> None:
    """Full weights with int8 inputs are added as floats in both, in another order: more inputs are almost
    half-way there.
    """
    model = small_model(weights=weights, activations=activations, sub_norm=sub_norm)
    ids = random_ids(model, 60)
    assert (
        difference(packed(model, head="f32").new_rows(1).read({0: ids}, every=True), torch_logits(model, ids))
        < limit
    )


@pytest.mark.parametrize(("head", "limit"), [("bf16", 1e-2), ("int8", 2e-2), ("int4", 0.15)])
def test_each_format_of_the_head_is_as_near_as_its_bits_allow(head: Any, limit: float) -> None:
    model = small_model(embeddings_tied=False)
    ids = random_ids(model, 60)
    exact = torch_logits(model, ids)
    assert 1e-5 < difference(packed(model, head=head).new_rows(1).read({0: ids}, every=True), exact) < limit


@pytest.mark.parametrize("full", ["f32", "bf16", "int8", "int4"])
def test_a_control_runs_with_weights_of_every_format(full: Any) -> None:
    model = small_model(weights="full", activations="full")
    ids = random_ids(model, 30)
    logits = packed(model, head="f32", full=full).new_rows(1).read({0: ids}, every=True)
    limit = {"f32": 1e-5, "bf16": 1e-2, "int8": 3e-2, "int4": 0.5}[full]
    assert difference(logits, torch_logits(model, ids)) < limit


@pytest.mark.parametrize("head", ["f32", "bf16", "int8", "int4"])
@pytest.mark.parametrize("weights", ["ternary", "full"])
def test_every_path_and_any_number_of_threads_give_the_same_bits(
    path: str, use: Callable[[Any, str], None], head: Any, weights: str
) -> None:
    model = small_model(weights=weights, sub_norm=True)
    ids = random_ids(model, 150)
    found = [
        packed(model, head=head, threads=count).new_rows(1).read({0: ids}, every=True) for count in (1, 3)
    ]
    assert np.array_equal(*found)
    use(None, "scalar")
    assert np.array_equal(
        found[0], packed(model, head=head, threads=1).new_rows(1).read({0: ids}, every=True)
    )


@pytest.mark.parametrize("head", ["f32", "bf16", "int8", "int4"])
def test_a_prompt_read_at_once_in_pieces_or_by_steps_has_the_same_bits(head: Any) -> None:
    """Up to the model's last position; 200 tokens are also more than one chunk of the engine."""
    model = small_model()
    ids = random_ids(model, model.config.max_seq_length)
    rows = packed(model, head=head).new_rows(3)
    at_once = rows.read({0: ids}, every=True)
    pieces = np.concatenate(
        [rows.read({1: ids[start : start + 33]}, every=True) for start in range(0, len(ids), 33)]
    )
    steps = np.concatenate([rows.read({2: [token]}) for token in ids])
    assert np.array_equal(at_once, pieces)
    assert np.array_equal(at_once, steps)


def test_rows_of_different_lengths_are_read_together_as_if_each_were_alone() -> None:
    model = small_model()
    texts = {row: random_ids(model, count, seed=row) for row, count in enumerate((1, 9, 31, 150, 8))}
    decoder = packed(model)
    together = decoder.new_rows(5)
    first, second = together.read(texts), together.read({3: [1], 0: [2, 3], 4: [4]})
    for index, (row, ids) in enumerate(texts.items()):
        alone = decoder.new_rows(1)
        assert np.array_equal(alone.read({0: ids})[0], first[index])
        more = {3: (0, [1]), 0: (1, [2, 3]), 4: (2, [4])}.get(row)
        if more:
            assert np.array_equal(alone.read({0: more[1]})[0], second[more[0]])
    assert together.lengths.tolist() == [3, 9, 31, 151, 9]


@pytest.mark.parametrize("head", ["f32", "int8", "int4"])
def test_a_large_head_for_many_rows_gives_the_logits_of_each_row_alone(
    path: str, use: Callable[[Any, str], None], head: Any
) -> None:
    """The head is multiplied a group of tiles at a time; here it has several groups, the last one shorter."""
    model = small_model(vocab_size=1111, hidden_size=512, num_layers=1, ffn_hidden_size=32)
    rows = packed(model, head=head).new_rows(7)
    together = rows.read({row: [row] for row in range(6)})
    use(None, "scalar")
    for row in range(6):
        rows.take_back(6, 0)
        assert np.array_equal(rows.read({6: [row]})[0], together[row])


def test_an_integer_head_takes_its_inputs_as_int8_codes() -> None:
    """The weights are whole numbers of 1/128 that int8 holds exactly, so that only the inputs are rounded."""
    model = small_model(weights="full", activations="full", embeddings_tied=False)
    with torch.no_grad():
        model.lm_head.weight.copy_(torch.randint(-127, 128, model.lm_head.weight.shape) / 128)
        model.lm_head.weight[:, 0] = 127 / 128  # the scale of every row is 1/128
    ids = random_ids(model, 20)
    head = packed(model, head="int8").weights.head
    decoder = PackedDecoder(model.config, packed(model, head="f32").weights._replace(head=head))

    with torch.no_grad():
        hidden = model.hidden(torch.tensor([ids]))[0]
    step = hidden.abs().amax(dim=1, keepdim=True) / 127
    expected = ((hidden / step).round() * step) @ model.lm_head.weight.T
    assert np.allclose(head.scale, 1 / 128)
    found = decoder.new_rows(1).read({0: ids}, every=True)
    assert difference(found, expected.detach().numpy()) < 1e-5


def test_a_row_that_took_back_and_read_anew_forgets() -> None:
    model = small_model()
    ids, other = random_ids(model, 40), random_ids(model, 25, seed=2)
    rows = packed(model).new_rows(2, 64)
    rows.read({0: [*ids[:10], *other], 1: other})
    rows.take_back(0, 10)
    after = rows.read({0: ids[10:]})
    rows.take_back(1, 0)
    assert np.array_equal(after, rows.read({1: ids}))


@pytest.mark.parametrize("length", [1, 15, 16, 17, 40])
@pytest.mark.parametrize("width", [48, 80])
def test_a_branch_reads_on_from_its_beginning_and_leaves_it_alone(length: int, width: int) -> None:
    model = small_model(hidden_size=width)  # heads of 12, and of 20: more than one tile of dimensions
    begin, one, two = (random_ids(model, count, seed=count) for count in (length, 7, 8))
    rows = packed(model).new_rows(3, 60)
    rows.read({0: begin, 1: two})
    rows.branch(0, 1)
    assert rows.lengths.tolist() == [length, length, 0]
    branched, root = rows.read({1: one, 0: two})
    assert np.array_equal(branched, rows.read({2: begin + one})[0])
    rows.take_back(2, 0)
    assert np.array_equal(root, rows.read({2: begin + two})[0])


def test_greedy_text_is_that_of_the_model() -> None:
    for seed in range(5):
        model = small_model(seed)
        ids = random_ids(model, 10, seed)
        rows = packed(model, head="f32").new_rows(1)
        new, logits = list(ids), rows.read({0: ids})
        for _ in range(30):
            new.append(int(logits[0].argmax()))
            expected = torch_logits(model, new[:-1])[-1]
            gap = float(expected.max() - expected[new[-1]])
            assert gap <= 1e-3 * np.abs(expected).max(), "another token, and no near-tie"
            logits = rows.read({0: [new[-1]]})


def test_rotary_angles_are_those_of_the_model() -> None:
    config = small_model().config
    for found, whole in zip(
        rotary_halves(config),
        rotary_table(config.head_dim, config.max_seq_length, config.rope_theta),
        strict=True,
    ):
        assert np.allclose(found, whole[:, : config.head_dim // 2].numpy(), atol=1e-7)


def test_ids_and_lengths_that_do_not_fit_are_refused_and_nothing_is_read() -> None:
    rows = packed(small_model()).new_rows(2, 20)
    for bad in (-1, 50, 2**40):
        with pytest.raises(DataError, match="outside 0 to 49"):
            rows.read({0: [1, bad]})
    with pytest.raises(DataError, match="21 tokens do not fit the 20"):
        rows.read({0: [1] * 21})
    rows.read({0: [1] * 19})
    with pytest.raises(DataError, match="21 tokens do not fit"):
        rows.read({0: [1, 2]})
    with pytest.raises(DataError, match="empty"):
        rows.read({0: []})
    with pytest.raises(ValueError, match=r"rows \[2\] of 2"):
        rows.read({2: [1]})
    with pytest.raises(AssertionError):
        rows.take_back(0, 20)
    assert rows.lengths.tolist() == [19, 0]


def good(decoder: PackedDecoder) -> dict[str, Any]:
    one = np.zeros(1, np.int64)
    return {"rows": decoder.new_rows(1, 20), "ids": one, "row": one, "position": one, "want": one}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ids", np.zeros(1, np.int32)),
        ("ids", np.zeros((1, 1), np.int64)),
        ("row", np.zeros(2, np.int64)),
        ("position", np.zeros(4, np.int64)[::4].copy()[:0]),
        ("want", np.zeros(4, np.int64)[::2]),
    ],
)
def test_wrong_arrays_never_reach_c(name: str, value: Any) -> None:
    decoder = packed(small_model())
    decoder.forward(**good(decoder))
    with pytest.raises(ValueError, match=r"int64|positions"):
        decoder.forward(**{**good(decoder), name: value})
    with pytest.raises(ValueError, match="of this decoder"):
        packed(small_model()).forward(**good(decoder))


def test_matrices_and_norms_of_another_shape_never_reach_c() -> None:
    decoder = packed(small_model())
    config, weights = decoder.config, decoder.weights
    layer = weights.layers[0]
    wrong = [
        weights._replace(head=layer.qkv),
        weights._replace(final_norm=weights.final_norm[:-1]),
        weights._replace(final_norm=weights.final_norm.astype(np.float64)),
        weights._replace(head=weights.head._replace(data=weights.head.data[:-64])),
        weights._replace(head=weights.head._replace(scale=weights.head.scale[:-1])),
        weights._replace(layers=(layer._replace(down=layer.qkv), *weights.layers[1:])),
        weights._replace(
            layers=(layer._replace(down=layer.down._replace(int8_inputs=False)), *weights.layers[1:])
        ),
        weights._replace(layers=weights.layers[:-1]),
    ]
    for one in wrong:
        with pytest.raises(ValueError, match=r"matrix|norm|layers"):
            PackedDecoder(config, one)


def test_more_texts_than_memory_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = packed(small_model())
    monkeypatch.setattr(engine, "machine_memory_bytes", lambda: 10**6)
    with pytest.raises(
        ConfigError, match=r"1000 texts of 200 tokens need 0\.\d GB .* use fewer or shorter ones"
    ):
        decoder.new_rows(1000)


def test_a_row_costs_what_it_uses() -> None:
    """Memory that was not written to is not there: of 64 rows for long texts one is used a little."""
    import resource

    model = small_model(max_seq_length=100_000)
    decoder = packed(model)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows = decoder.new_rows(64)
    rows.read({0: [1, 2, 3]})
    used = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert decoder.cache_bytes(100_000) * 64 > 4e9
    assert used < 5e7


def test_without_compiled_kernels_a_model_is_not_packed(use: Callable[[Any, str], None]) -> None:
    use(None, "torch")
    with pytest.raises(ConfigError, match="the compiled kernels are not in use here"):
        packed(small_model())
    assert library.path() == "torch"
