"""A model's continuations of many prompts, greedy or sampled, for judges that accept more than one answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from bitnet.generate.decode import continue_prompts
from bitnet.generate.decoder import Decoder
from bitnet.generate.snapshot import MODES
from bitnet.text.tokenizer import Tokenizer

Mode = Literal["greedy", "typical", "stress"]


def continuations(
    model: Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    end_mark: str,
    mode: Mode = "greedy",
    max_new_tokens: int,
) -> list[str]:
    """Continuations in the order of the prompts, each with its end mark where the model produced it.

    end_mark is one token. A continuation ends without it after max_new_tokens or at the model's
    max_seq_length.
    """
    (stop,) = tokenizer.encode(end_mark)
    ids = [tokenizer.encode(prompt) for prompt in prompts]
    return [
        tokenizer.decode(answer)
        for answer in continued_ids(model, ids, stop_id=stop, mode=mode, max_new_tokens=max_new_tokens)
    ]


def continued_ids(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    stop_id: int,
    mode: Mode = "greedy",
    max_new_tokens: int,
) -> list[list[int]]:
    """The same for ids, up to and including stop_id where it came."""
    return continue_prompts(
        model, prompts, max_new_tokens=max_new_tokens, stop_id=stop_id, sampling=MODES[mode]
    )
