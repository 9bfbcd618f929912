"""Greedy text from a packed model, without torch. Sampling and batches are in bitnet.generate.decode."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from bitnet.engine.decoder import PackedDecoder
from bitnet.errors import DataError, NotFiniteError
from bitnet.generate.sampling import NO_DISTRIBUTION


def greedy(decoder: PackedDecoder, prompt: Sequence[int], max_new_tokens: int) -> Iterator[int]:
    """The likeliest next ids one by one, at most `max_new_tokens`, up to the model's last position."""
    room = decoder.config.max_seq_length - len(prompt)
    if not prompt:
        raise DataError("the prompt is empty; give at least one token to continue")
    if room < 0:
        raise DataError(
            f"the prompt has {len(prompt)} tokens, the model reads at most "
            f"{decoder.config.max_seq_length}; shorten it"
        )

    rows = decoder.new_rows(1, len(prompt) + max(min(max_new_tokens, room), 0))
    new = list(prompt)
    for number in range(min(max_new_tokens, room + 1)):
        logits = rows.read({0: new})[0]
        if not np.isfinite(logits.max()):  # max passes a NaN on
            raise NotFiniteError(NO_DISTRIBUTION)
        new = [int(logits.argmax())]
        yield new[0]
        if number == room:
            return
