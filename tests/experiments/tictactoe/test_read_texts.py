"""The packed engine's walkers find what PyTorch finds, in place, in copies, and side by side."""

from __future__ import annotations

import numpy as np
import pytest
from models import needs_kernels, small_model
from numpy.typing import NDArray

from bitnet.engine.from_torch import packed
from bitnet.experiments.tictactoe.explorer import NOT_READ, Choices, Explorer, own_choices
from bitnet.experiments.tictactoe.games import ALPHABET
from bitnet.experiments.tictactoe.read_texts import PackedTexts, TorchTexts
from bitnet.nn.transformer import BitNetTransformer
from bitnet.text.characters import CharacterTokenizer
from bitnet.text.tokenizer import PAD

pytestmark = needs_kernels
TOKENIZER = CharacterTokenizer(ALPHABET, 32)


def some_children(depth: int, chosen: NDArray[np.int64], cells: NDArray[np.int64]) -> NDArray[np.bool_]:
    """A thin part of the tree that still reaches its leaves."""
    return (cells + depth) % 4 == 0


def same(found: Choices, expected: Choices) -> bool:
    return all(
        np.array_equal(here, there)
        for ours, theirs in zip(found, expected, strict=True)
        for here, there in zip(ours, theirs, strict=True)
    )


@pytest.fixture(scope="module")
def model() -> BitNetTransformer:
    return small_model(
        vocab_size=32, hidden_size=32, num_layers=1, num_heads=2, num_kv_heads=1, ffn_hidden_size=32
    )


@pytest.fixture(scope="module")
def expected(model: BitNetTransformer) -> Choices:
    return Explorer(model, TOKENIZER, wanted=some_children, results=True).explore()


@pytest.mark.parametrize(("walkers", "few"), [(1, 64), (1, 2), (3, 2), (3, 1000)])
def test_walkers_find_what_the_model_finds(
    model: BitNetTransformer, expected: Choices, walkers: int, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many lines are read in place, few with all their children at once; walkers share the tree."""
    monkeypatch.setattr(PackedTexts, "few", few)
    drop_in = packed(model, head="f32", threads=walkers)
    assert sum(int((cells != NOT_READ).sum()) for cells in expected.cells) > 50
    assert same(Explorer(drop_in, TOKENIZER, wanted=some_children, results=True).explore(), expected)


@pytest.mark.parametrize("side", [0, 1])
def test_own_lines_are_followed_as_the_model_plays(model: BitNetTransformer, side: int) -> None:
    drop_in = packed(model, head="f32", threads=2)
    assert same(own_choices(drop_in, TOKENIZER, side), own_choices(model, TOKENIZER, side))


def test_texts_of_different_lengths_are_read_from_rows_in_place_and_from_copies(
    model: BitNetTransformer,
) -> None:
    ours = PackedTexts.of(packed(model, head="f32"), 20, (0, 1))
    theirs = TorchTexts(model, model.new_cache(1, 20))
    begin, row = np.array([[1, 2, 3]]), np.zeros(1, np.int64)
    assert np.array_equal(ours.read(begin, row)[0], theirs.read(begin, row)[0])

    ends = np.array([[4, 5, 6], [7, 8, PAD], [9, PAD, PAD]])
    for rows in (np.zeros(3, np.int64), np.array([2, 0, 1])):  # copies of one row, then the copies in place
        found, ours, at = ours.read(ends, rows, every=True)  # type: ignore[assignment]
        wanted, theirs, there = theirs.read(ends, rows, every=True)  # type: ignore[assignment]
        assert np.array_equal(found[ends != PAD], wanted[ends != PAD])
        assert np.array_equal(at, there)
        ours.length = theirs.length = 3
    assert ours.read(ends[:2], at[:2])[0].tolist() == [found[0, 2], found[1, 1]]  # after the last token
