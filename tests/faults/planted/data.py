"""Faults of the training rows: what they hold, which part is scored and in which order they come."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from bitnet.data import conversations, generated, windows
from bitnet.data.generated import ExampleTable
from bitnet.data.shards import TokenStream
from bitnet.data.windows import WindowRows
from bitnet.experiments.bitnut_dpo import PreferenceTask
from bitnet.text.characters import CharacterTokenizer
from bitnet.train import loop, objective, start
from planted.fault import ADAMW, fault, on_run
from planted.runs import fine_tuning, preference, rewrite_scalars, small_run, stories


@fault("targets are the present tokens", "data", "next tokens")
def _() -> None:
    original = generated.shifted
    generated.shifted = lambda tokens, scored: original(tokens, scored)._replace(
        targets=original(tokens, scored).input_ids
    )


@fault("targets shifted twice in the loss", "data gradients", "training loss")
def _() -> None:
    original = objective.summed_loss
    objective.summed_loss = lambda logits, b: original(
        logits[:, :-1], type(b)(b.input_ids[:, :-1], b.targets[:, 1:], b.loss_mask[:, 1:])
    )


@fault("the same batch at every update", "data", "rows")
def _() -> None:
    original, kept = loop.read_batches, []

    def stale(*words: Any) -> Any:
        kept.append(original(*words))
        return kept[0]

    loop.read_batches = stale


@fault("rows read from the first again", "data", "own rows")
def _() -> None:
    original = loop.row_numbers
    loop.row_numbers = lambda step, micro, **rest: original(1, micro, **rest)


@fault("tokens shuffled", "data", "in order")
def _() -> None:
    original = generated.shifted

    def shuffled(tokens: Any, scored: Any) -> Any:
        return original(np.random.default_rng(0).permuted(tokens, axis=1), scored)

    generated.shifted = shuffled


@fault("rows of another tokenizer", "data", "same kind of text")
def _() -> None:
    original = ExampleTable.of.__func__  # type: ignore[attr-defined]

    def of(cls: Any, examples: Any, tokenizer: Any, weights: Any = None) -> Any:
        return original(
            cls, examples, CharacterTokenizer(tokenizer.alphabet[::-1], tokenizer.vocab_size), weights
        )

    ExampleTable.of = classmethod(of)  # type: ignore[assignment, method-assign]


@fault("ids beyond the vocabulary", "data", "vocabulary")
def _() -> None:
    original = CharacterTokenizer.encode
    CharacterTokenizer.encode = lambda self, text: [id_ + 15 for id_ in original(self, text)]  # type: ignore[method-assign]


@fault("a decoder that drops spaces", "data", "gives text back")
def _() -> None:
    original = CharacterTokenizer.decode
    CharacterTokenizer.decode = lambda self, ids: original(self, ids).replace(" ", "")  # type: ignore[method-assign]


@fault("padding scored", "data", "mask")
def _() -> None:
    ExampleTable.scored = lambda self, loss_on: np.ones(self.tokens.shape, dtype=bool)  # type: ignore[method-assign]


@fault("resumed at the wrong data position", "data checkpoint", "resumed run")
def _() -> None:
    original = start.train_steps

    def steps(*words: Any, start_step: int = 0, **rest: Any) -> Any:
        kept = loop.row_numbers
        loop.row_numbers = lambda step, micro, **sizes: kept(step - start_step, micro, **sizes)
        try:
            yield from original(*words, start_step=start_step, **rest)
        finally:
            loop.row_numbers = kept

    start.train_steps = steps


@fault("the stream begins again after 150 updates", "data", "plan")
def _() -> None:
    original = loop.row_numbers
    loop.row_numbers = lambda step, micro, **rest: original((step - 1) % 150 + 1, micro, **rest)


@fault("the order of rows returns", "data", "come again")
def _() -> None:
    original = generated.random_fractions
    generated.random_fractions = lambda seed, rows, slots: original(seed, rows % 1000, slots)


@fault("end mark not scored", "data", "end are scored")
def _() -> None:
    original = ExampleTable.scored

    def scored(self: Any, loss_on: Any) -> Any:
        mask = original(self, loss_on).copy()
        mask[range(len(mask)), self.lengths - 1] = False
        return mask

    ExampleTable.scored = scored  # type: ignore[method-assign]


@fault("first letter of the answer not scored", "data", "end are scored")
def _() -> None:
    original = ExampleTable.scored

    def scored(self: Any, loss_on: Any) -> Any:
        mask = original(self, loss_on).copy()
        mask[range(len(mask)), self.answer_starts] = False
        return mask

    ExampleTable.scored = scored  # type: ignore[method-assign]


@fault("tails of rows not scored", "data", "real token", ADAMW)
def _() -> None:
    original = generated.shifted

    def shorter(tokens: Any, scored: Any) -> Any:
        batch = original(tokens, scored)
        batch.loss_mask[:, -2:] = False
        return batch

    generated.shifted = shorter


@fault("some sums wrong as well", "data", "one answer")
def _() -> None:
    original = ExampleTable.of.__func__  # type: ignore[attr-defined]

    def of(cls: Any, examples: Any, tokenizer: Any, weights: Any = None) -> Any:
        known = list(examples)
        wrong = (
            [one._replace(answer=f"{int(one.answer) + 1}\n") for one in known[::10]]
            if len(known) > 500
            else []
        )
        return original(cls, [*known, *wrong], tokenizer, weights)

    ExampleTable.of = classmethod(of)  # type: ignore[assignment, method-assign]


@on_run("a run whose first update was another", "data optimizer", "repeat")
def _(folder: Path) -> list[str]:
    words = small_run(folder)
    rewrite_scalars(folder, lambda row: {**row, "loss": row["loss"] + (0.2 if row["step"] == 1 else 0)})
    return words


@fault("windows with gaps", "data", "epoch", prepare=stories)
def _() -> None:
    original = WindowRows.window_numbers
    WindowRows.window_numbers = lambda self, numbers: original(self, numbers) // 2 * 2  # type: ignore[method-assign]


@fault("every epoch in the same order", "data", "come again", prepare=stories)
def _() -> None:
    original = windows.permuted
    windows.permuted = lambda numbers, n, seed, epochs: original(numbers, n, seed, epochs * 0)


@fault("documents run into each other", "data", "end-of-text", prepare=stories)
def _() -> None:
    original = TokenStream.read

    def read(self: Any, start: int, count: int) -> Any:
        tokens = original(self, start, count)
        tokens[tokens == 2] = 40
        return tokens

    TokenStream.read = read  # type: ignore[method-assign]


def _learned(change: Callable[[list[bool]], list[bool]]) -> None:
    original = conversations.conversation_ids

    def ids(*words: Any) -> Any:
        found, learned = original(*words)
        return found, change(learned)

    conversations.conversation_ids = ids


@fault("questions are learned", "data", "end are scored", prepare=fine_tuning)
def _() -> None:
    _learned(lambda learned: [True] * len(learned))


@fault("ends of answers not learned", "data", "end are scored", prepare=fine_tuning)
def _() -> None:
    _learned(lambda learned: [*(a and b for a, b in pairwise(learned)), False])


@fault("a preference against other rows' reference", "data", "start weights", prepare=preference)
def _() -> None:
    original = PreferenceTask._reference
    PreferenceTask._reference = lambda self, batch: original(self, batch).roll(1)  # type: ignore[method-assign]
