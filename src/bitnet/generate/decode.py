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
from bitnet.nn.kv_cache import KVCache
from bitnet.nn.transformer import BitNetTransformer

MAX_ROWS = 512  # rows decoded together; bounds the memory of the cache


class ReadText:
    """What a model has read of one growing text, so that the next call reads only what is new."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self._cache: KVCache | None = None

    def recall(self, model: BitNetTransformer, ids: list[int]) -> tuple[KVCache, int]:
        """A cache that holds the beginning of a text, and how many of its ids: all but the last at most."""
        if self._cache is None:
            self._cache = model.new_cache(1)
        known = 0
        while known < min(len(self.ids), len(ids) - 1) and self.ids[known] == ids[known]:
            known += 1
        self._cache.length, self.ids = known, self.ids[:known]
        return self._cache, known


@torch.no_grad()
def stream(
    model: BitNetTransformer,
    prompt_ids: Tensor,
    *,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    memory: ReadText | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (new ids int64 (B,), the logits they came from (B, V)), one position at a time.

    prompt_ids: int64 (B, T), T >= 1. Ends early where the model's max_seq_length is reached. The model's mode
    (train or eval) plays no role: it has no dropout. memory: of the same model, for a single row.
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
    generator = sampling.generator(prompt_ids.device)
    new = prompt_ids
    if memory is None:
        cache = model.new_cache(rows, length + max(min(max_new_tokens, room), 0))
    else:
        cache, known = memory.recall(model, prompt_ids[0].tolist())
        new = prompt_ids[:, known:]
    for _ in range(min(max_new_tokens, room + 1)):
        logits = model.next_logits(new, cache)  # (B, V)
        if memory is not None:
            memory.ids += new[0].tolist()
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
