"""Rows that walk the tree depth first find what the model finds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models import needs_kernels, small_model
from numpy.typing import NDArray

from bitnet.engine.from_torch import PackedTransformer, packed
from bitnet.experiments.tictactoe import packed_explorer
from bitnet.experiments.tictactoe.explorer import NOT_READ, Explorer, own_choices
from bitnet.experiments.tictactoe.games import ALPHABET
from bitnet.nn.transformer import BitNetTransformer
from bitnet.text.characters import CharacterTokenizer

pytestmark = needs_kernels
TOKENIZER = CharacterTokenizer(ALPHABET, 32)


def some_children(depth: int, chosen: NDArray[np.int64], cells: NDArray[np.int64]) -> NDArray[np.bool_]:
    """A thin part of the tree that still reaches its leaves."""
    return (cells + depth) % 4 == 0


@pytest.fixture(scope="module")
def model() -> BitNetTransformer:
    return small_model(
        vocab_size=32, hidden_size=32, num_layers=1, num_heads=2, num_kv_heads=1, ffn_hidden_size=32
    )


@pytest.mark.parametrize("rows", [512, 3])
def test_the_packed_walk_finds_what_the_model_finds(
    model: BitNetTransformer, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With few rows, each takes one root after another."""
    monkeypatch.setattr(packed_explorer, "ROWS", rows)
    if rows < 9:  # the first depths are read side by side
        monkeypatch.setattr(packed_explorer, "ROOT_DEPTH", 1)
    drop_in = PackedTransformer(packed(model, head="f32"))
    found = Explorer(drop_in, TOKENIZER, wanted=some_children, results=True).explore()
    expected = Explorer(model, TOKENIZER, wanted=some_children, results=True).explore()
    assert sum(int((cells != NOT_READ).sum()) for cells in expected.cells) > 50
    for here, there in zip(found.cells, expected.cells, strict=True):
        assert np.array_equal(here, there)
    for here, there in zip(found.right_result, expected.right_result, strict=True):
        assert np.array_equal(here, there)


@pytest.mark.parametrize("side", [0, 1])
def test_own_lines_are_followed_as_the_model_plays(model: BitNetTransformer, side: int) -> None:
    drop_in = PackedTransformer(packed(model, head="f32"))
    for here, there in zip(
        own_choices(drop_in, TOKENIZER, side).cells, own_choices(model, TOKENIZER, side).cells, strict=True
    ):
        assert np.array_equal(here, there)


def test_a_result_line_that_is_written_counts() -> None:
    """A model that always says the next token of what it reads would be right: made by its weights it cannot
    be, so the walk is told the answers.
    """
    told: list[tuple[int, bool]] = []

    class Oracle:
        """Rows whose likeliest token after an id is the one that follows it in the text."""

        lengths = np.zeros(512, np.int64)

        def take_back(self, row: int, length: int) -> None:
            """Nothing to forget."""

        def read(self, texts: dict[int, list[int]], *, every: bool) -> NDArray[np.float32]:
            ids = [token for text in texts.values() for token in [*text[1:], 0]]
            return np.eye(32, dtype=np.float32)[ids]

    class Decoder:
        def new_rows(self, count: int, capacity: int) -> Oracle:
            return Oracle()

    first = packed_explorer.first_children()

    def answered(line: packed_explorer.Line, said: NDArray[np.int64], ids: list[int]) -> None:
        told.append((line[0], said[:-1].tolist() == ids[1:]))

    def wanted(line: packed_explorer.Line) -> list[int]:
        return [first[line[0]][line[1]]]

    packed_explorer.Walk(Decoder(), TOKENIZER.encode, answered, wanted).explore()  # type: ignore[arg-type]
    assert [depth for depth, _ in told] == list(range(8))  # X wins with 0, 2, 4 and 6 after seven moves
    assert all(right for _, right in told)
    assert torch.tensor(told).shape == (8, 2)
