"""Rows in which a sentence is said again, so that a model learns not to get stuck in one.

Greedy decoding of a small model ends in loops: once a sentence has been said twice, a third time is likely. Xu et al. ("Learning to
Break the Loop", arXiv:2206.02369, section 3.2) train on sentences that are repeated to the end of a row, and ask that each repetition
be less expected than the one before (train/objective.py has the loss). Here the repetition is short, and then the text goes on as it
was written, so that the same row also shows the way out:

    She saw a dog. |The dog was big.| The dog was big. The dog was big.| He ran away. ...
                    said              said again: less of it              next-token prediction as ever

What the repetition takes in a row is cut off its end. Row i is a pure function of (seed, i).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bitnet.data.stream import Batch, RowSource, shifted
from bitnet.errors import ConfigError
from bitnet.text.tokenizer import Tokenizer

MOST_TURNS = 4  # a sentence is said again one to so many times
SENTENCE_TOKENS = (2, 32)  # shortest and longest that is repeated
LATEST_START = 0.75  # of a row; a sentence that begins later would have no room
END_MARKS = (".", "!", "?")
CLOSING_QUOTES = "\"'”’"


def sentence_ends(tokenizer: Tokenizer) -> NDArray[np.bool_]:
    """Which ids may be the last of a sentence: a full stop, with or without a closing quote. (V,)."""
    texts = (tokenizer.decode([index]).strip().rstrip(CLOSING_QUOTES) for index in range(tokenizer.vocab_size))
    return np.array([text.endswith(END_MARKS) for text in texts])


class RepeatedSentences:
    """The rows of another source, a share of them with one sentence said again. `Batch.repeats` says where."""

    def __init__(self, inner: RowSource, tokenizer: Tokenizer, *, share: float, seed: int) -> None:
        """inner: rows of one text each, every target scored. Raises ConfigError unless share is in (0, 1]."""
        if not 0 < share <= 1:
            raise ConfigError(f"the share of rows with a repeated sentence is {share}; it must be above 0 and at most 1")
        self.inner, self.share, self.seed = inner, share, seed
        self.ends, self.eos = sentence_ends(tokenizer), tokenizer.eos_id

    def rows(self, numbers: NDArray[np.int64]) -> Batch:
        """The rows with these numbers; targets that are said again are in `repeats` and not in `loss_mask`."""
        plain = self.inner.rows(numbers)
        tokens = torch.cat((plain.input_ids, plain.targets[:, -1:]), dim=1).numpy()  # (B, T + 1)
        back = np.zeros_like(tokens)
        for row, number in enumerate(numbers.tolist()):
            self._repeat(tokens[row], back[row], np.random.default_rng((self.seed, number)))
        return shifted(tokens, back == 0)._replace(repeats=torch.from_numpy(back[:, 1:].copy()))

    def _repeat(self, tokens: NDArray[np.int64], back: NDArray[np.int64], generator: np.random.Generator) -> None:
        """Say one sentence of the row again, in place. back: how far back a token was said before, 0 where it was not."""
        sentences = self._sentences(tokens)
        if not sentences or generator.random() >= self.share:
            return
        start, end = sentences[generator.integers(len(sentences))]
        turns = int(generator.integers(1, MOST_TURNS + 1))
        again = np.tile(tokens[start:end], turns)
        changed = np.concatenate((again, tokens[end:]))[: len(tokens) - end]
        tokens[end:] = changed
        back[end : end + len(again)] = end - start

    def _sentences(self, tokens: NDArray[np.int64]) -> list[tuple[int, int]]:
        """Start and end (exclusive) of the whole sentences that may be repeated. None of them ends a document."""
        closing = tokens == self.eos
        after = np.flatnonzero(self.ends[tokens] | closing) + 1  # where sentences and documents begin
        fewest, most = SENTENCE_TOKENS
        return [
            (int(start), int(end))
            for start, end in zip(after[:-1], after[1:], strict=True)
            if fewest <= end - start <= most and start < LATEST_START * len(tokens) and not closing[end - 1]
        ]

    def epochs(self, rows: int) -> float:
        """As the other source's, whose row ends are cut off a little."""
        return self.inner.epochs(rows)

    def fingerprint(self) -> dict[str, Any]:
        """The other source's, with the share."""
        return {**self.inner.fingerprint(), "repeated_sentences": self.share}
