"""A sitting at the board: every answer a person may type, against a model that knows nothing and one that
plays by a script.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bitnet.cli import play as verb
from conftest import Command, Result, run_command

pytestmark = pytest.mark.slow


SMALL = """
    --model.hidden-size 32 --model.num-layers 1 --model.num-heads 2 --model.num-kv-heads 1
    --model.ffn-hidden-size 48 --batch-size 4 --train.eval-cases 4 --num-steps 1
""".split()
Sitting = Command


@pytest.fixture(scope="module")
def _one_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("board") / "runs"
    assert (
        run_command(
            "train",
            "tictactoe",
            "--variant",
            "quick",
            "--device",
            "cpu",
            *SMALL,
            "--run-id",
            "xo",
            "--runs-dir",
            runs,
        ).code
        == 0
    )
    return runs


@pytest.fixture
def sit(_one_run: Path, bitnet: Command, monkeypatch: pytest.MonkeyPatch) -> Sitting:
    """Play with these typed lines; after the last one comes Ctrl-D."""

    def play(
        *typed: str,
        wants: tuple[int, ...] = (),
        end: type[BaseException] = EOFError,
        flags: tuple[str, ...] = ("--side", "X"),
    ) -> Result:
        lines = iter(typed)

        def answer(prompt: str = "") -> str:
            print(prompt, end="")
            try:
                return next(lines)
            except StopIteration:
                raise end from None

        def scripted(trained: object, text: str) -> torch.Tensor:
            """All on the next wanted cell, the rest on the others in falling order."""
            moves = text.count(":") - 1
            chances = torch.full((32,), 0.0001)
            for rank, cell in enumerate((wants[moves // 2], *range(9))):
                chances[4 + cell] = max(float(chances[4 + cell]), 0.5 / (rank + 1) ** 3)
            return chances

        monkeypatch.setattr("builtins.input", answer)
        if wants:
            monkeypatch.setattr(verb, "next_token_probabilities", scripted)
        return bitnet("play", "xo", "--runs-dir", _one_run, "--json", *flags)

    return play


def test_a_won_game_is_counted_and_another_begins(sit: Sitting) -> None:
    done = sit("0", "1", "2", "", "q", wants=(3, 4, 5))
    assert done.code == 0
    assert "You win." in done.out
    assert "The model writes:" in done.out
    assert (done.json["you"], done.json["model"], done.json["draws"], done.json["illegal"]) == (1, 0, 0, 0)


def test_a_lost_game_as_o(sit: Sitting) -> None:
    done = sit("0", "1", wants=(3, 4, 5), flags=("--side", "O"))
    assert "The model wins." in done.out
    assert done.json["model"] == 1


def test_illegal_moves_of_the_model_are_shown_and_counted(sit: Sitting) -> None:
    """It wants the cell that the person just took; the next choice on its list is played."""
    done = sit("0", wants=(0,))
    assert "cell 0, which is taken: an ILLEGAL move" in done.out
    assert "O (model): 1" in done.out
    assert done.json["illegal"] == 1


def test_an_untrained_model_can_be_played_to_the_end(sit: Sitting) -> None:
    done = sit(*(str(cell) for cell in range(9)), *(str(cell) for cell in range(9)))
    assert done.code == 0
    assert done.json["you"] + done.json["model"] + done.json["draws"] >= 1


def test_undo_takes_back_both_moves_and_hint_draws_the_chances(sit: Sitting) -> None:
    done = sit("u", "0", "u", "h", "0", "q", wants=(4, 5))
    assert "There is no move of yours to take back." in done.out
    assert "in your place the model would play" in done.out
    assert "%" in done.out
    assert done.out.count("O (model): 4") == 2


def test_nonsense_asks_again(sit: Sitting) -> None:
    done = sit("9", "x", "", "-1", "²", "0", "0", "q", wants=(4, 5))
    assert done.code == 0
    assert "Cell 0 is taken." in done.out
    assert done.out.count("h hint") >= 5


def test_side_is_asked_for_and_can_be_switched(sit: Sitting) -> None:
    done = sit("z", "o", "s", "q", wants=(4, 5, 6), flags=())
    assert "Type x or o" in done.out
    assert "X (model): 4" in done.out
    assert "X (you):" in done.out


@pytest.mark.parametrize("end", [EOFError, KeyboardInterrupt])
@pytest.mark.parametrize("flags", [(), ("--side", "X")])
def test_ctrl_c_and_ctrl_d_leave_cleanly(
    sit: Sitting, end: type[BaseException], flags: tuple[str, ...]
) -> None:
    done = sit(end=end, flags=flags)
    assert done.code == 0
    assert "illegal moves of the model: 0" in done.out


def test_temperature_draws_and_the_seed_repeats(sit: Sitting) -> None:
    first, second = (
        sit("0", "q", flags=("--side", "X", "--temperature", "1.5", "--seed", "3")).out for _ in range(2)
    )
    assert first == second


def test_a_run_that_never_saw_a_board_is_refused(bitnet: Command, runs: Path) -> None:
    done = bitnet("play", "tiny", "--runs-dir", runs)
    assert done.code == 2
    assert "tiny has not learned a game; train tic-tac-toe with" in done.err
    assert bitnet("play", "xo", "--temperature", "-1", "--runs-dir", runs).code == 2
