"""The cached reading of the game tree against reading every text by itself."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bitnet.experiments.tictactoe import explorer
from bitnet.experiments.tictactoe.explorer import (
    NO_CELL,
    NOT_READ,
    Explorer,
    cell_ids,
    own_choices,
    sampled_choices,
)
from bitnet.experiments.tictactoe.game_tree import BETWEEN, RESULTS, X_WINS, game_tree, line_text, question
from bitnet.experiments.tictactoe.games import ALPHABET
from bitnet.experiments.tictactoe.scores import legal_rate, play_out
from bitnet.generate.decode import continue_prompts
from bitnet.nn.config import BitNetConfig
from bitnet.nn.transformer import BitNetTransformer
from bitnet.text.characters import CharacterTokenizer

TOKENIZER = CharacterTokenizer(ALPHABET, 32)


@pytest.fixture(scope="module")
def model() -> BitNetTransformer:
    """Untrained, but with its embeddings spread so that its answers differ from line to line."""
    torch.manual_seed(3)
    config = BitNetConfig(
        vocab_size=32,
        hidden_size=32,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        ffn_hidden_size=32,
        max_seq_length=96,
    )
    model = BitNetTransformer(config)
    with torch.no_grad():
        model.token_embeddings.weight.normal_()
    return model


def some_children(depth: int, chosen: NDArray[np.int64], cells: NDArray[np.int64]) -> NDArray[np.bool_]:
    """A thin part of the tree that still reaches its leaves."""
    return (cells + depth) % 4 == 0


@pytest.mark.slow
@pytest.mark.parametrize("max_rows", [512, 4])
def test_cached_reading_of_the_tree_equals_reading_each_text_by_itself(
    model: BitNetTransformer, max_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With few rows at a time the walk reads most lines in place, with padding in the rows that have
    ended.
    """
    monkeypatch.setattr(explorer, "MAX_ROWS", max_rows)
    choices = Explorer(model, TOKENIZER, wanted=some_children, results=True).explore()
    read = [
        (depth, line)
        for depth, cells in enumerate(choices.cells)
        for line in np.flatnonzero(cells != NOT_READ).tolist()
    ]
    assert len(read) > 50
    assert len({depth for depth, _ in read}) >= 6
    ids = cell_ids(TOKENIZER)
    for depth, line in read:
        prompt = TOKENIZER.encode(question(game_tree()[depth].moves[line].tolist()))
        with torch.no_grad():
            likeliest = int(model(torch.tensor([prompt]))[0, -1].argmax())
        assert choices.cells[depth][line] == (ids.index(likeliest) if likeliest in ids else NO_CELL)


@pytest.mark.slow
def test_result_line_counts_as_right_exactly_when_greedy_decoding_writes_it(
    tiny_config: BitNetConfig,
) -> None:
    """A model that has learned one game by heart is right for that ending."""
    torch.manual_seed(0)
    model = BitNetTransformer(dataclasses.replace(tiny_config, max_seq_length=96))
    line = (0, 3, 1, 4, 2, 5)
    row = torch.tensor([TOKENIZER.encode(line_text(line[:5]) + BETWEEN + RESULTS[X_WINS])])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)

    def judged() -> tuple[bool, bool]:
        asked = Explorer(
            model, TOKENIZER, wanted=lambda depth, chosen, cells: cells == line[depth], results=True
        )
        right = sum(int(right.sum()) for right in asked.explore().right_result)
        prompt = TOKENIZER.encode(line_text(line[:5]))
        said = continue_prompts(model, [prompt], max_new_tokens=20, stop_id=TOKENIZER.encode("\n")[0])[0]
        return right == 1, TOKENIZER.decode(said) == " | Result: X wins\n"

    assert judged() == (False, False)
    for _ in range(200):
        loss = torch.nn.functional.cross_entropy(model(row[:, :-1]).flatten(0, 1), row[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 0.02:
            break
    assert judged() == (True, True)


def test_own_choices_read_every_line_that_comes_up_and_no_other_reply(model: BitNetTransformer) -> None:
    for side in (0, 1):
        played = play_out(own_choices(model, TOKENIZER, side), side)
        assert played[f"losses_as_{'xo'[side]}_cases"] > 0


def test_sampled_choices_are_always_the_same_lines(model: BitNetTransformer) -> None:
    first, second = (sampled_choices(model, TOKENIZER, 40) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first.cells, second.cells, strict=True))
    assert legal_rate(first)["legal_rate_cases"] == 40
