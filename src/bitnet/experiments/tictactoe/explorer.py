"""What a model does in the lines of tic-tac-toe.

Lines of one depth have texts of one length and share their beginnings, so the model reads the tree downwards:
each distinct line costs the six tokens by which it is longer than its parent, after its parent's cache.

A model's move is its likeliest token after `X:` or `O:`, whatever that token is. Not here: what its moves are
worth (scores.py), and how the games that it learns from are played (games.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray

from bitnet.engine.decoder import PackedDecoder
from bitnet.experiments.tictactoe.game_tree import (
    BETWEEN,
    MARKS,
    OPEN,
    RESULTS,
    X_WINS,
    IntArray,
    game_tree,
    question,
)
from bitnet.experiments.tictactoe.read_texts import MAX_ROWS, PackedTexts, SharedTexts, TorchTexts
from bitnet.generate.decoder import Decoder
from bitnet.nn.transformer import BitNetTransformer
from bitnet.text.tokenizer import PAD, Tokenizer

NOT_READ, NO_CELL = -2, -1

Wanted = Callable[[int, IntArray, IntArray], NDArray[np.bool_]]


class Choices(NamedTuple):
    """What a model does, by depth. cells: int8, NO_CELL for a token that is no cell, NOT_READ for lines not
    asked.

    right_result: bool, for finished lines whether the greedy text after the last move is the right result.
    """

    cells: list[NDArray[np.int8]]
    right_result: list[NDArray[np.bool_]]


def cell_ids(tokenizer: Tokenizer) -> list[int]:
    """Token ids of the cells 0..8."""
    return [tokenizer.encode(str(cell))[0] for cell in range(9)]


class Explorer:
    """Reads a model's answers down the tree."""

    def __init__(
        self, model: Decoder, tokenizer: Tokenizer, *, wanted: Wanted | None = None, results: bool = False
    ) -> None:
        """wanted(depth, parents, cells): which children to go on with (default all); results: also read the
        result lines.
        """
        self.model, self.tokenizer, self.wanted, self.results = model, tokenizer, wanted, results
        self.device = model.device
        self.token_of = np.array(cell_ids(tokenizer))
        self.cell_of = np.full(tokenizer.vocab_size, NO_CELL, dtype=np.int8)
        self.cell_of[self.token_of] = np.arange(9)
        tree = game_tree()
        self.choices = Choices(
            [np.full(len(d.moves), NOT_READ, dtype=np.int8) for d in tree],
            [np.zeros(len(d.moves), dtype=bool) for d in tree],
        )

    @torch.no_grad()
    def explore(self) -> Choices:
        """Ask every wanted line, from the empty board on. The packed engine has a walker for each thread,
        with parts of the tree of its own: a walker never waits for another, as threads inside a product do.
        """
        longest = len(self.tokenizer.encode(question(range(8)) + BETWEEN + RESULTS[X_WINS])) + 1
        if not isinstance(self.model, PackedDecoder):
            model = cast(BitNetTransformer, self.model)
            self._walk(TorchTexts(model, model.new_cache(1, longest)))
            return self.choices

        walkers = range(self.model.threads)
        texts = [PackedTexts.of(self.model, longest, (number, len(walkers))) for number in walkers]
        with ThreadPoolExecutor(len(walkers)) as pool:
            list(pool.map(self._walk, texts))
        return self.choices

    def _walk(self, texts: SharedTexts) -> None:
        root = np.zeros(1, dtype=np.int64)
        self._ask(0, root, root, np.array([self.tokenizer.encode(question(()))]), texts)

    def _ask(self, depth: int, lines: IntArray, rows: IntArray, tokens: IntArray, texts: SharedTexts) -> None:
        """Read the ends of these open lines, (n, k) tokens, after their beginnings, which are `rows` of
        `texts`; then the children.
        """
        start = texts.length
        said, here, rows = texts.read(tokens, rows)
        self.choices.cells[depth][lines] = self.cell_of[said]
        below = game_tree()[depth + 1]
        for children, parents in self._families(depth, lines, texts):
            closed = below.outcome[children] != OPEN
            for part in _parts(np.flatnonzero(closed)) if self.results else ():
                self._read_result(depth + 1, children[part], rows[parents[part]], here)
            for part in _parts(np.flatnonzero(~closed)):
                ends = self._tokens(
                    below.moves[children[part], -1], [f"{BETWEEN}{MARKS[(depth + 1) % 2]}:"] * len(part)
                )
                self._ask(depth + 1, children[part], rows[parents[part]], ends, here)
        texts.length = start

    def _families(
        self, depth: int, lines: IntArray, texts: SharedTexts
    ) -> Iterator[tuple[IntArray, IntArray]]:
        """Wanted children, as indices in the depth below and of their parents in `lines`: all at once, or, of
        many lines, every line's first child, then every line's second, so that they can be read in place.
        """
        below = game_tree()[depth + 1]
        free = 9 - depth  # every open line of this depth has as many children
        children = np.searchsorted(below.parent, lines)[:, None] + np.arange(free)  # (n, free)
        parents = np.tile(np.arange(len(lines))[:, None], free)
        if len(lines) < texts.few:
            children, parents = children.reshape(-1, 1), parents.reshape(-1, 1)
        number, walkers = texts.walker
        for family, of in zip(children.T, parents.T, strict=True):
            keep = family % walkers == number if depth == 1 else np.ones(len(family), bool)
            if self.wanted is not None:
                chosen = self.choices.cells[depth][lines[of]].astype(np.int64)
                keep &= self.wanted(depth, chosen, below.moves[family, -1].astype(np.int64))
            yield family[keep], of[keep]

    def _tokens(self, cells: NDArray[np.int8], texts: Sequence[str]) -> IntArray:
        """Each move and the text that follows it, padded, (n, k)."""
        tails = {text: self.tokenizer.encode(text) for text in set(texts)}
        longest = max(map(len, tails.values()))
        padded = {text: tail + [PAD] * (longest - len(tail)) for text, tail in tails.items()}
        return np.column_stack([self.token_of[cells], np.array([padded[text] for text in texts])])

    def _read_result(self, depth: int, lines: IntArray, rows: IntArray, texts: SharedTexts) -> None:
        """Greedy decoding gives a text if and only if each of its tokens is the likeliest after the ones
        before.
        """
        here = game_tree()[depth]
        tokens = self._tokens(
            here.moves[lines, -1], [BETWEEN + RESULTS[outcome] for outcome in here.outcome[lines]]
        )
        start = texts.length
        said, _, _ = texts.read(tokens[:, :-1], rows, every=True)  # (n, k - 1)
        texts.length = start
        right = (said == tokens[:, 1:]) | (tokens[:, 1:] == PAD)
        self.choices.right_result[depth][lines] = right.all(axis=1)


def _parts(indices: IntArray) -> Iterator[IntArray]:
    """At most MAX_ROWS at a time."""
    for start in range(0, len(indices), MAX_ROWS):
        yield indices[start : start + MAX_ROWS]


def every_choice(model: Decoder, tokenizer: Tokenizer) -> Choices:
    """The model's answer in every unfinished line and its result line after every finished one."""
    return Explorer(model, tokenizer, results=True).explore()


def own_choices(model: Decoder, tokenizer: Tokenizer, side: int) -> Choices:
    """The model's answers in the lines that can come up when it plays one side (0 for X) against every
    reply.
    """

    def wanted(depth: int, chosen: IntArray, cells: IntArray) -> NDArray[np.bool_]:
        keep: NDArray[np.bool_] = (chosen == cells) | (depth % 2 != side)
        return keep

    return Explorer(model, tokenizer, wanted=wanted).explore()


@torch.no_grad()
def sampled_choices(model: Decoder, tokenizer: Tokenizer, count: int) -> Choices:
    """The model's answer in `count` unfinished lines, always the same ones. Each text is read as a whole."""
    explorer = Explorer(model, tokenizer)
    tree = game_tree()
    depth_of = np.concatenate([np.full(len(depth.outcome), number) for number, depth in enumerate(tree)])
    line_of = np.concatenate([np.arange(len(depth.outcome)) for depth in tree])
    unfinished = np.flatnonzero(np.concatenate([depth.outcome for depth in tree]) == OPEN)
    chosen = np.random.default_rng(0).choice(unfinished, size=min(count, len(unfinished)), replace=False)
    for number in np.unique(depth_of[chosen]):
        lines = line_of[chosen[depth_of[chosen] == number]]
        for part in _parts(lines):
            texts = [tokenizer.encode(question(moves)) for moves in tree[number].moves[part].tolist()]
            logits = model(torch.tensor(texts, device=explorer.device))[:, -1]
            explorer.choices.cells[number][part] = explorer.cell_of[logits.argmax(-1).cpu().numpy()]
    return explorer.choices
