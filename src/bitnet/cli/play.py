"""`bitnet play RUN`: a game such as tic-tac-toe against a trained model, in the terminal.

The model gets the text of the game and nothing else. An answer that is not a free cell is shown and counted,
and its next likeliest answer is taken, so that the game can continue.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from tyro.conf import Positional

from bitnet.cli.flags import parse
from bitnet.cli.model import ModelFlags, load_model
from bitnet.cli.registry import experiment_of_run
from bitnet.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from bitnet.train.experiment import Game
    from bitnet.trained_model import TrainedModel


@dataclass(frozen=True, kw_only=True)
class PlayFlags(ModelFlags):
    """Play tic-tac-toe against a model, in the terminal."""

    run: Annotated[Positional[str], tyro.conf.arg(metavar="RUN")] = "tictactoe"
    """Run id, directory, checkpoint, experiment name, or latest; it must have learned tic-tac-toe."""
    side: Literal["ask", "X", "O"] = "ask"
    """Your side; X begins."""
    temperature: float = 0.0
    """0: the model plays its likeliest move; above: it draws."""
    seed: int = 0
    """Seed of the drawing."""
    experiment: Path | None = None
    """The run's experiment, where it is your own: a file that only the run names is never executed."""


@dataclass
class Table:
    """One sitting: the game on the board and the score so far."""

    trained: TrainedModel
    game: Game
    side: int
    """The person's: 0 for X, 1 for O."""
    temperature: float
    seed: int
    moves: list[int] = field(default_factory=list)
    score: dict[str, int] = field(default_factory=lambda: {"you": 0, "model": 0, "draws": 0, "illegal": 0})

    @property
    def help(self) -> str:
        """What may be typed."""
        return f"0-{self.game.cells - 1} play a cell   h hint   u undo   n new game   s switch sides   q quit"

    @property
    def cell_ids(self) -> list[int]:
        """The token of each cell."""
        return [self.trained.tokenizer.encode(str(cell))[0] for cell in range(self.game.cells)]

    def board(self) -> str:
        """The game so far; free cells show their numbers."""
        return self.game.board(self.moves, [str(cell) for cell in range(self.game.cells)])


class LeaveGame(Exception):
    """The person wants to stop."""


def main(arguments: Sequence[str]) -> int:
    """Play until the person leaves."""
    flags = parse(PlayFlags, arguments, "play")
    from bitnet.generate.sampling import Sampling

    Sampling(flags.temperature, seed=flags.seed)  # raises ConfigError for a value out of range
    trained = load_model(flags)
    game = experiment_of_run(trained.layout, flags.experiment).game
    if game is None:
        raise DataError(
            f"{trained.layout.run_id} has not learned a game; train tic-tac-toe with: bitnet train tictactoe"
        )
    table = Table(trained, game, 0, flags.temperature, flags.seed)
    print(f"{game.name.capitalize()} against {trained.layout.run_id} at step {trained.step}.\n{table.help}")
    try:
        table.side = "XO".index(flags.side) if flags.side != "ask" else ask_side()
        while True:
            play_one(table)
            ask_again(table)
    except (LeaveGame, EOFError, KeyboardInterrupt):
        print()
    score = table.score
    print(
        f"you {score['you']}, model {score['model']}, draws {score['draws']}; illegal moves of the model: "
        f"{score['illegal']}"
    )
    if flags.json:
        print(
            json.dumps(
                {"run": trained.layout.run_id, "step": trained.step, "engine": trained.engine, **score}
            )
        )
    return 0


def ask(prompt: str) -> str:
    """One line from the person. Raises LeaveGame for q."""
    word = input(prompt).strip().lower()
    if word in ("q", "quit", "exit"):
        raise LeaveGame
    return word


def ask_side() -> int:
    """0 for X, 1 for O."""
    while True:
        word = ask("Your side, X or O (X begins)? [X] ") or "x"
        if word in ("x", "o"):
            return "xo".index(word)
        print("  Type x or o, or q to leave.")


def ask_again(table: Table) -> None:
    """Another game, on the same or the other side."""
    while True:
        word = ask("Again? Enter for another game, s to switch sides, q to leave: ")
        if word in ("", "y", "yes", "n", "s"):
            table.side ^= word == "s"
            table.moves.clear()
            return
        print("  Type Enter, s or q.")


def play_one(table: Table) -> None:
    """One game to its end."""
    drawn = False
    while table.game.legal(table.moves):
        if len(table.moves) % 2 == table.side:
            if not drawn:
                print(table.board())
            drawn = your_turn(table)
        else:
            table.moves.append(model_move(table))
            drawn = False
    side = table.game.winner(table.moves)
    who = "draws" if side is None else "you" if side == table.side else "model"
    table.score[who] += 1
    print(table.board())
    print({"draws": "A draw.", "you": "You win.", "model": "The model wins."}[who] + f" {said_result(table)}")


def your_turn(table: Table) -> bool:
    """Take one answer. Returns whether the board on the screen still holds."""
    word = ask(f"{'XO'[table.side]} (you): ")
    if word in ("h", "hint"):
        print(hint(table))
        return True
    if word in ("u", "undo"):
        if len(table.moves) < 2:
            print("  There is no move of yours to take back.")
            return True
        del table.moves[-2:]
        return False
    if word in ("n", "new", "s"):
        table.side ^= word == "s"
        table.moves.clear()
        return False
    cell = int(word) if word.isascii() and word.isdigit() else table.game.cells
    if cell in table.game.legal(table.moves):
        table.moves.append(cell)
        return False
    print(f"  Cell {word} is taken." if cell < table.game.cells else f"  {table.help}")
    return True


def model_move(table: Table) -> int:
    """The model's likeliest, or drawn, free cell; whatever it preferred and may not do is shown and
    counted.
    """
    import torch

    game, tokenizer, mark = table.game, table.trained.tokenizer, "XO"[1 - table.side]
    chances = next_token_probabilities(table.trained, game.question(table.moves))
    if table.temperature > 0:
        generator = torch.Generator().manual_seed(
            (table.seed * game.cells + len(table.moves) + 1000 * sum(table.score.values())) % 2**63
        )
        scaled = (chances.log() / table.temperature).softmax(-1)
        order = torch.multinomial(scaled + 1e-12, len(chances), generator=generator)
    else:
        order = chances.argsort(descending=True, stable=True)
    cells = {token: cell for cell, token in enumerate(table.cell_ids)}
    legal = game.legal(table.moves)
    for token in order.tolist():
        cell = cells.get(token)
        if cell is not None and cell in legal:
            print(f"{mark} (model): {cell}   it gave this cell {float(chances[token]):.1%}")
            return cell
        table.score["illegal"] += 1
        what = (
            f"cell {cell}, which is taken"
            if cell is not None
            else f"{tokenizer.decode([token])!r}, which is not a cell"
        )
        print(
            f"{mark} (model): {what}: an ILLEGAL move ({float(chances[token]):.1%}); its next choice counts"
        )
    raise AssertionError("an open game has a free cell")


def next_token_probabilities(trained: TrainedModel, text: str) -> Tensor:
    """How likely the model finds each token after a text. float32 (V,). Raises NotFiniteError for a broken
    model.
    """
    import torch

    from bitnet.generate.sampling import refuse_broken

    ids = trained.tokenizer.encode(text)
    logits = torch.as_tensor(trained.model.new_rows(1, len(ids)).read({0: ids})[0])
    refuse_broken(logits)
    return logits.float().softmax(-1).cpu()


def hint(table: Table) -> str:
    """What the model would play in the person's place, drawn on the board."""
    chances = next_token_probabilities(table.trained, table.game.question(table.moves))[table.cell_ids]
    words = [f"{float(chance):.0%}" for chance in chances]
    illegal = 1 - sum(float(chances[cell]) for cell in table.game.legal(table.moves))
    advice = (
        f"in your place the model would play {int(chances.argmax())}; {illegal:.1%} of its chances are "
        "illegal"
    )
    return f"{table.game.board(table.moves, words)}  {advice}"


def said_result(table: Table) -> str:
    """What the model writes after the last move, which it was never told."""
    said = table.trained.complete(table.game.text(table.moves), max_new_tokens=20).removeprefix(" | ")
    return f'The model writes: "{said}"'
