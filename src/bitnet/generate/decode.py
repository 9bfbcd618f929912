"""Continue prompts: one pass over the prompt, then one cached position per new token.

Rows of a batch have prompts of equal length; `continue_prompts` groups prompts by length and keeps their
order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor

from bitnet.errors import DataError
from bitnet.generate.sampling import GREEDY, Sampling, choose
from bitnet.nn.transformer import BitNetTransformer

MAX_ROWS = 512  # rows decoded together; bounds the memory of the cache


@torch.no_grad()
def stream(
    model: BitNetTransformer, prompt_ids: Tensor, *, max_new_tokens: int, sampling: Sampling = GREEDY
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (new ids int64 (B,), the logits they came from (B, V)), one position at a time.

    prompt_ids: int64 (B, T), T >= 1. Ends early where the model's max_seq_length is reached. The model's mode
    (train or eval) plays no role: it has no dropout.
    """
    rows, length = prompt_ids.shape
    if length == 0:
        raise DataError("the prompt is empty; give at least one token to continue")
    room = model.config.max_seq_length - length
    if room < 0:
        raise DataError(
            f"the prompt has {length} tokens, the model reads at most {model.config.max_seq_length}; shorten "
            "it"
        )
    cache = model.new_cache(rows, length + max(min(max_new_tokens, room), 0))
    generator = sampling.generator(prompt_ids.device)
    new = prompt_ids
    for _ in range(min(max_new_tokens, room + 1)):
        logits = model.next_logits(new, cache)  # (B, V)
        chosen = choose(logits, sampling, generator)
        yield chosen, logits
        if cache.length >= cache.capacity:
            return
        new = chosen.unsqueeze(1)  # (B, 1)


def generate(
    model: BitNetTransformer,
    prompt_ids: Tensor,
    *,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    stop_ids: Collection[int] = (),
) -> Tensor:
    """Prompt and continuation, int64 (B, T + new). Ends when every row has produced one of stop_ids."""
    done = torch.zeros(prompt_ids.shape[0], dtype=torch.bool, device=prompt_ids.device)
    stops = torch.tensor(sorted(stop_ids), dtype=torch.int64, device=prompt_ids.device)
    columns = [prompt_ids]
    for chosen, _ in stream(model, prompt_ids, max_new_tokens=max_new_tokens, sampling=sampling):
        columns.append(chosen.unsqueeze(1))
        done |= torch.isin(chosen, stops)
        if stop_ids and bool(done.all()):
            break
    return torch.cat(columns, dim=1)


def continue_prompts(
    model: BitNetTransformer,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_id: int,
    sampling: Sampling = GREEDY,
) -> list[list[int]]:
    """Continuations in the order of the prompts, each up to and including stop_id where it came."""
    device = model.device
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, prompt in enumerate(prompts):
        by_length[len(prompt)].append(index)
    answers: list[list[int]] = [[] for _ in prompts]
    for length, members in by_length.items():
        for start in range(0, len(members), MAX_ROWS):
            part = members[start : start + MAX_ROWS]
            ids = torch.tensor([list(prompts[i]) for i in part], dtype=torch.int64, device=device)
            out = generate(model, ids, max_new_tokens=max_new_tokens, sampling=sampling, stop_ids=(stop_id,))
            for index, row in zip(part, out[:, length:].tolist(), strict=True):
                answers[index] = row[: row.index(stop_id) + 1] if stop_id in row else row
    return answers
