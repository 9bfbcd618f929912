"""What a model does in the lines of tic-tac-toe.

Lines of one depth have texts of one length and share their beginnings, so the model reads the tree downwards:
each distinct line costs the six tokens by which it is longer than its parent, after its parent's cache.

A model's move is its likeliest token after `X:` or `O:`, whatever that token is. Not here: what its moves are
worth (scores.py), and how the games that it learns from are played (games.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitnet.engine.from_torch import PackedTransformer
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
from bitnet.experiments.tictactoe.packed_explorer import Line, Walk, first_children
from bitnet.nn.kv_cache import KVCache
from bitnet.nn.transformer import BitNetTransformer
from bitnet.text.tokenizer import PAD, Tokenizer

NOT_READ, NO_CELL = -2, -1
MAX_ROWS = 512  # lines read together; bounds the memory of the caches
IN_PLACE = 0.8  # share of a cache's rows that must go on for it to be worth reading padding in the others

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
        self,
        model: BitNetTransformer,
        tokenizer: Tokenizer,
        *,
        wanted: Wanted | None = None,
        results: bool = False,
    ) -> None:
        """wanted(depth, parents, cells): which children to go on with (default all); results: also read the
        result lines.
        """
        self.model, self.tokenizer, self.wanted, self.results = model, tokenizer, wanted, results
        self.device = model.device
        self.cell_of = np.full(tokenizer.vocab_size, NO_CELL, dtype=np.int8)
        self.cell_of[cell_ids(tokenizer)] = np.arange(9)
        tree = game_tree()
        self.choices = Choices(
            [np.full(len(d.moves), NOT_READ, dtype=np.int8) for d in tree],
            [np.zeros(len(d.moves), dtype=bool) for d in tree],
        )

    @torch.no_grad()
    def explore(self) -> Choices:
        """Ask every wanted line, from the empty board on."""
        if isinstance(self.model, PackedTransformer):
            self._explore_packed(self.model)
            return self.choices
        start = torch.tensor([self.tokenizer.encode(question(()))], device=self.device)
        longest = len(self.tokenizer.encode(question(range(8)) + BETWEEN + RESULTS[X_WINS])) + 1
        root = np.zeros(1, dtype=np.int64)
        self._ask(0, root, root, start, self.model.new_cache(1, longest))
        return self.choices

    def _explore_packed(self, model: PackedTransformer) -> None:
        """The same by rows that walk the tree depth first."""
        first, cells, right = first_children(), self.choices.cells, self.choices.right_result
        outcome = [depth.outcome.tolist() for depth in game_tree()]

        def answered(line: Line, said: IntArray, ids: list[int]) -> None:
            depth, index = line
            if outcome[depth][index] == OPEN:
                cells[depth][index] = self.cell_of[said[-1]]
            else:
                right[depth][index] = said.tolist() == walk.result[outcome[depth][index]]

        def wanted(line: Line) -> list[int]:
            depth, index = line
            children = range(first[depth][index], first[depth][index] + 9 - depth)
            kept = [child for child in children if self.results or outcome[depth + 1][child] == OPEN]
            if self.wanted is None or not kept:
                return kept
            moves = game_tree()[depth + 1].moves[kept, -1].astype(np.int64)
            keep = self.wanted(depth, np.full(len(kept), cells[depth][index], np.int64), moves)
            return [child for child, one in zip(kept, keep.tolist(), strict=True) if one]

        walk = Walk(model.decoder, self.tokenizer.encode, answered, wanted)
        walk.explore()

    def _ask(self, depth: int, lines: IntArray, rows: IntArray, tokens: Tensor, room: KVCache) -> None:
        """Read the ends of these open lines, (n, k) tokens, after their beginnings, which are `rows` of
        `room`; then the children.
        """
        start = room.length
        hidden, here, rows = self._read(tokens, rows, room)
        self.choices.cells[depth][lines] = self.cell_of[
            self.model.lm_head(hidden[:, -1]).argmax(-1).cpu().numpy()
        ]
        below = game_tree()[depth + 1]
        for children, parents in self._families(depth, lines):
            closed = below.outcome[children] != OPEN
            for part in _parts(np.flatnonzero(closed)) if self.results else ():
                self._read_result(depth + 1, children[part], rows[parents[part]], here)
            for part in _parts(np.flatnonzero(~closed)):
                ends = self._tokens(
                    below.moves[children[part], -1], [f"{BETWEEN}{MARKS[(depth + 1) % 2]}:"] * len(part)
                )
                self._ask(depth + 1, children[part], rows[parents[part]], ends, here)
        room.length = start

    def _read(self, tokens: Tensor, rows: IntArray, room: KVCache) -> tuple[Tensor, KVCache, IntArray]:
        """Hidden states (n, k, C) of tokens (n, k) read after `rows` of a cache, the cache that now holds
        them, and their rows in it.

        Where most rows go on, they do so in place, and the caller takes the cache back to its length; the few
        that do not read padding, which is overwritten. Else the rows that go on are copied: copying is what
        this walk spends its time on.
        """
        if len(rows) < IN_PLACE * room.rows or len(np.unique(rows)) < len(rows):
            room = room.branch(torch.from_numpy(rows).to(self.device), room.capacity - room.length)
            return self.model.hidden(tokens, room), room, np.arange(len(rows))
        whole = torch.zeros(room.rows, tokens.shape[1], dtype=torch.int64, device=self.device)
        whole[rows] = tokens
        return self.model.hidden(whole, room)[rows], room, rows

    def _families(self, depth: int, lines: IntArray) -> Iterator[tuple[IntArray, IntArray]]:
        """Wanted children, as indices in the depth below and of their parents in `lines`: all at once, or, of
        many lines, every line's first child, then every line's second, so that they can be read in place.
        """
        below = game_tree()[depth + 1]
        free = 9 - depth  # every open line of this depth has as many children
        children = np.searchsorted(below.parent, lines)[:, None] + np.arange(free)  # (n, free)
        parents = np.tile(np.arange(len(lines))[:, None], free)
        if len(lines) < MAX_ROWS // 2:
            children, parents = children.reshape(-1, 1), parents.reshape(-1, 1)
        for family, of in zip(children.T, parents.T, strict=True):
            if self.wanted is None:
                yield family, of
                continue
            chosen = self.choices.cells[depth][lines[of]].astype(np.int64)
            keep = self.wanted(depth, chosen, below.moves[family, -1].astype(np.int64))
            yield family[keep], of[keep]

    def _tokens(self, cells: NDArray[np.int8], texts: Sequence[str]) -> Tensor:
        """Each move and the text that follows it, padded, (n, k)."""
        rows = [
            self.tokenizer.encode(f"{cell}{text}") for cell, text in zip(cells.tolist(), texts, strict=True)
        ]
        longest = max(map(len, rows))
        return torch.tensor([row + [PAD] * (longest - len(row)) for row in rows], device=self.device)

    def _read_result(self, depth: int, lines: IntArray, rows: IntArray, room: KVCache) -> None:
        """Greedy decoding gives a text if and only if each of its tokens is the likeliest after the ones
        before.
        """
        here = game_tree()[depth]
        tokens = self._tokens(
            here.moves[lines, -1], [BETWEEN + RESULTS[outcome] for outcome in here.outcome[lines]]
        )
        start = room.length
        hidden, _, _ = self._read(tokens[:, :-1], rows, room)
        room.length = start
        said = self.model.lm_head(hidden).argmax(-1)  # (n, k - 1)
        right = (said == tokens[:, 1:]) | (tokens[:, 1:] == PAD)
        self.choices.right_result[depth][lines] = right.all(dim=1).cpu().numpy()


def _parts(indices: IntArray) -> Iterator[IntArray]:
    """At most MAX_ROWS at a time."""
    for start in range(0, len(indices), MAX_ROWS):
        yield indices[start : start + MAX_ROWS]


def every_choice(model: BitNetTransformer, tokenizer: Tokenizer) -> Choices:
    """The model's answer in every unfinished line and its result line after every finished one."""
    return Explorer(model, tokenizer, results=True).explore()


def own_choices(model: BitNetTransformer, tokenizer: Tokenizer, side: int) -> Choices:
    """The model's answers in the lines that can come up when it plays one side (0 for X) against every
    reply.
    """

    def wanted(depth: int, chosen: IntArray, cells: IntArray) -> NDArray[np.bool_]:
        keep: NDArray[np.bool_] = (chosen == cells) | (depth % 2 != side)
        return keep

    return Explorer(model, tokenizer, wanted=wanted).explore()


@torch.no_grad()
def sampled_choices(model: BitNetTransformer, tokenizer: Tokenizer, count: int) -> Choices:
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
