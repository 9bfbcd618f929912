"""The game tree against known counts, and the cached reading of it against reading every text by itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bitnet.experiments.tictactoe import game_tree as play
from bitnet.experiments.tictactoe.task import ALPHABET
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


def test_tree_has_the_known_numbers_of_lines_and_results() -> None:
    """255,168 games: 131,184 won by X, 77,904 by O, 46,080 drawn (the usual count of tic-tac-toe games)."""
    tree = play.game_tree()
    outcomes = np.concatenate([depth.outcome for depth in tree])
    assert [int((outcomes == one).sum()) for one in range(4)] == [294_778, 131_184, 77_904, 46_080]
    assert [len(depth.moves) for depth in tree[:6]] == [1, 9, 72, 504, 3024, 15_120]
    assert max(len(play.question(line)) for line in tree[8].moves[:5].tolist()) == 17 + 8 * 6 + 5


def test_texts_are_those_of_the_plan() -> None:
    assert play.line_text((4, 0, 8)) == "_ _ _ _ _ _ _ _ _ | X:4 | O:0 | X:8"
    assert play.question((4, 0, 8)) == "_ _ _ _ _ _ _ _ _ | X:4 | O:0 | X:8 | O:"
    assert play.winner((0, 3, 1, 4, 2)) == play.X_WINS
    assert play.winner((0, 3, 1, 4, 8, 5)) == play.O_WINS
    assert play.winner((0, 3)) == play.OPEN


def some_children(depth: int, chosen: NDArray[np.int64], cells: NDArray[np.int64]) -> NDArray[np.bool_]:
    """A thin part of the tree that still reaches its leaves."""
    return (cells + depth) % 4 == 0


@pytest.mark.parametrize("max_rows", [512, 4])
def test_cached_reading_of_the_tree_equals_reading_each_text_by_itself(
    model: BitNetTransformer, max_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With few rows at a time the walk reads most lines in place, with padding in the rows that have
    ended.
    """
    monkeypatch.setattr(play, "MAX_ROWS", max_rows)
    choices = play.Explorer(model, TOKENIZER, wanted=some_children, results=True).explore()
    read = [
        (depth, line)
        for depth, cells in enumerate(choices.cells)
        for line in np.flatnonzero(cells != play.NOT_READ).tolist()
    ]
    assert len(read) > 50
    assert len({depth for depth, _ in read}) >= 6
    ids = play.cell_ids(TOKENIZER)
    for depth, line in read:
        prompt = TOKENIZER.encode(play.question(play.game_tree()[depth].moves[line].tolist()))
        with torch.no_grad():
            likeliest = int(model(torch.tensor([prompt]))[0, -1].argmax())
        assert choices.cells[depth][line] == (ids.index(likeliest) if likeliest in ids else play.NO_CELL)


def test_result_line_counts_as_right_exactly_when_greedy_decoding_writes_it(
    tiny_config: BitNetConfig,
) -> None:
    """A model that has learned one game by heart is right for that ending."""
    torch.manual_seed(0)
    model = BitNetTransformer(dataclasses.replace(tiny_config, max_seq_length=96))
    line = (0, 3, 1, 4, 2, 5)
    row = torch.tensor(
        [TOKENIZER.encode(play.line_text(line[:5]) + play.BETWEEN + play.RESULTS[play.X_WINS])]
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)

    def judged() -> tuple[bool, bool]:
        explorer = play.Explorer(
            model, TOKENIZER, wanted=lambda depth, chosen, cells: cells == line[depth], results=True
        )
        right = sum(int(right.sum()) for right in explorer.explore().right_result)
        prompt = TOKENIZER.encode(play.line_text(line[:5]))
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
        played = play.play_out(play.own_choices(model, TOKENIZER, side), side)
        assert played[f"losses_as_{'xo'[side]}_cases"] > 0


def test_sampled_choices_are_always_the_same_lines(model: BitNetTransformer) -> None:
    first, second = (play.sampled_choices(model, TOKENIZER, 40) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first.cells, second.cells, strict=True))
    assert play.legal_rate(first)["legal_rate_cases"] == 40


def policy(choose: str) -> play.Choices:
    """A player who takes the first or the last free cell in every line."""
    cells = []
    for depth in play.game_tree():
        free = (depth.taken[:, None] >> np.arange(9)) & 1 == 0
        one = free.argmax(axis=1) if choose == "first" else 8 - free[:, ::-1].argmax(axis=1)
        cells.append(one.astype(np.int8))
    return play.Choices(cells, [np.zeros(len(c), dtype=bool) for c in cells])


def expected(moves: Sequence[int], side: int, choose: str) -> tuple[float, float, int]:
    """Share of wins and losses, and number of lost lines, by plain recursion."""
    outcome = play.winner(moves)
    if outcome != play.OPEN:
        won = outcome != play.DRAW and outcome - 1 == side
        lost = outcome != play.DRAW and not won
        return float(won), float(lost), int(lost)
    free = [cell for cell in range(9) if cell not in moves]
    if len(moves) % 2 == side:
        return expected([*moves, free[0] if choose == "first" else free[-1]], side, choose)
    below = [expected([*moves, cell], side, choose) for cell in free]
    return (
        sum(b[0] for b in below) / len(free),
        sum(b[1] for b in below) / len(free),
        sum(b[2] for b in below),
    )


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("choose", ["first", "last"])
def test_playing_out_equals_plain_recursion(side: int, choose: str) -> None:
    played = play.play_out(policy(choose), side)
    mark = "xo"[side]
    wins, losses, lost_lines = expected([], side, choose)
    assert played[f"expected_wins_as_{mark}"] == pytest.approx(wins)
    assert played[f"expected_losses_as_{mark}"] == pytest.approx(losses)
    assert played[f"losses_as_{mark}"] == lost_lines
    assert played[f"illegal_as_{mark}"] == 0
    assert play.legal_rate(policy(choose)) == {"legal_rate": 1.0, "legal_rate_cases": 294_778.0}


def test_an_illegal_move_forfeits_the_game() -> None:
    """A player who always wants the cell 4 begins well and is illegal at the second move: one line for each
    reply.
    """
    always = play.Choices([np.full(len(d.moves), 4, dtype=np.int8) for d in play.game_tree()], [])
    played = play.play_out(always, 0)
    assert (played["illegal_as_x"], played["losses_as_x"], played["losses_as_x_cases"]) == (8.0, 8.0, 8.0)
    assert played["expected_losses_as_x"] == pytest.approx(1.0)
