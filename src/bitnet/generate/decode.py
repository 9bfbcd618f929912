"""Continue prompts: one pass over the prompt, then one position per new token.

`Writer` continues any number of texts together; one may join or leave between two steps. The rest of this
file are its uses: a single text that is shown as it grows, rows of equal length, and a list of prompts whose
rows are given to waiting prompts when they end.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bitnet.errors import DataError
from bitnet.generate.decoder import Decoder, Rows
from bitnet.generate.sampling import GREEDY, Sampling, choose

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MAX_ROWS = 512  # rows decoded together; bounds the memory of the cache


@dataclass
class Text:
    """A text that is continued: what of it the model has not read, and how many tokens may follow.

    It is drawn with a generator of its own, so that it does not depend on the texts beside it.
    """

    unread: list[int]
    left: int
    sampling: Sampling
    generator: torch.Generator | None


def begun(
    decoder: Decoder, prompt: Sequence[int], max_new_tokens: int, sampling: Sampling, number: int = 0
) -> Text:
    """A text that begins with a prompt. number: which of several texts of one seed it is.

    It goes on to the model's last position at most. Raises DataError for a prompt that the model cannot read.
    """
    longest = decoder.config.max_seq_length
    if not prompt:
        raise DataError("the prompt is empty; give at least one token to continue")
    if len(prompt) > longest:
        raise DataError(f"the prompt has {len(prompt)} tokens, the model reads at most {longest}; shorten it")

    # The last position that is read predicts one token more.
    left = max(min(max_new_tokens, longest - len(prompt) + 1), 0)
    greedy = sampling.temperature == 0
    generator = None if greedy else sampling.of_text(number).generator(decoder.device)
    return Text(list(prompt), left, sampling, generator)


class Writer:
    """Texts that are continued together, each in a row of its own."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.texts: dict[int, Text] = {}
        self._free = list(range(len(rows.lengths)))[::-1]

    @property
    def has_room(self) -> bool:
        """Whether another text may join."""
        return bool(self._free)

    def join(self, text: Text) -> int:
        """Continue this text from the next step on. Returns its row."""
        row = self._free.pop()
        self.texts[row] = text
        return row

    def leave(self, row: int) -> None:
        """Do not continue the text of a row, which is then free for another one."""
        del self.texts[row]
        self.rows.take_back(row, 0)
        self._free.append(row)

    def step(self) -> list[tuple[int, int, Any]]:
        """Read what is new of every text. Returns row, next id, and the logits (V,) that it came from."""
        logits = self.rows.read({row: text.unread for row, text in self.texts.items()})
        chosen = _chosen(logits, list(self.texts.values()))
        for text, token in zip(self.texts.values(), chosen, strict=True):
            text.unread, text.left = [token], text.left - 1
        return list(zip(self.texts, chosen, logits, strict=True))


def _chosen(logits: Any, texts: Sequence[Text]) -> list[int]:
    """The next id of each text. logits: (n, V)."""
    if all(text.generator is None for text in texts):
        likeliest: list[int] = choose(logits, GREEDY, None).tolist()
        return likeliest
    return [
        int(choose(logits[index : index + 1], text.sampling, text.generator)[0])
        for index, text in enumerate(texts)
    ]


class ReadText:
    """What a model has read of one growing text, so that the next call reads only what is new."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self._rows: Rows | None = None

    def recall(self, decoder: Decoder, ids: Sequence[int]) -> Rows:
        """A row that has read the beginning of a text, all but the last id at most; `self.ids` says which."""
        if self._rows is None:
            self._rows = decoder.new_rows(1)
        known = 0
        while known < min(len(self.ids), len(ids) - 1) and self.ids[known] == ids[known]:
            known += 1
        self._rows.take_back(0, known)
        self.ids = self.ids[:known]
        return self._rows


def stream(
    decoder: Decoder,
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    memory: ReadText | None = None,
) -> Iterator[tuple[int, Any]]:
    """Yield (new id, the logits (V,) it came from), one position at a time.

    Ends early where the model's max_seq_length is reached. memory: of the same model.
    """
    text = begun(decoder, prompt, max_new_tokens, sampling)
    if memory is None:
        memory, rows = ReadText(), decoder.new_rows(1, len(prompt) + text.left)
    else:
        rows = memory.recall(decoder, prompt)
        text.unread = text.unread[len(memory.ids) :]
    writer = Writer(rows)
    writer.join(text)
    while text.left > 0:
        new = text.unread
        ((_, token, logits),) = writer.step()
        memory.ids += new
        yield token, logits


def generate(
    decoder: Decoder,
    prompt_ids: Tensor,
    *,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    stop_ids: Collection[int] = (),
) -> Tensor:
    """Prompt and continuation, int64 (B, T + new). Ends when every row has produced one of stop_ids."""
    import torch

    prompts: list[list[int]] = prompt_ids.tolist()
    texts = [begun(decoder, prompt, max_new_tokens, sampling, row) for row, prompt in enumerate(prompts)]
    writer = Writer(decoder.new_rows(len(texts), len(prompts[0]) + texts[0].left))
    for text in texts:
        writer.join(text)

    columns, ended = [prompt_ids], set[int]()
    while texts[0].left > 0 and len(ended) < len(texts):
        said = [(row, token) for row, token, _ in writer.step()]
        columns.append(torch.tensor([[token] for _, token in said], device=prompt_ids.device))
        ended |= {row for row, token in said if token in stop_ids}
    return torch.cat(columns, dim=1)


def continue_prompts(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_id: int,
    sampling: Sampling = GREEDY,
) -> list[list[int]]:
    """Continuations in the order of the prompts, each up to and including stop_id where it came."""
    answers: list[list[int]] = [[] for _ in prompts]
    for group in _groups(decoder, prompts):
        waiting = deque(
            (index, begun(decoder, prompts[index], max_new_tokens, sampling, index)) for index in group
        )
        longest = max(len(text.unread) + text.left for _, text in waiting)
        writer = Writer(decoder.new_rows(min(len(waiting), MAX_ROWS), longest))
        of_row: dict[int, int] = {}
        while waiting or writer.texts:
            while waiting and writer.has_room:
                index, text = waiting.popleft()
                if text.left:
                    of_row[writer.join(text)] = index
            for row, token, _ in writer.step() if writer.texts else ():
                answers[of_row[row]].append(token)
                if token == stop_id or not writer.texts[row].left:
                    writer.leave(row)
    return answers


def _groups(decoder: Decoder, prompts: Sequence[Sequence[int]]) -> Iterator[Sequence[int]]:
    """Prompts, by number, that are continued together: all, or those of one length, as many as have a row."""
    if decoder.mixes_lengths:
        yield from [range(len(prompts))] if prompts else ()
        return
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, prompt in enumerate(prompts):
        by_length[len(prompt)].append(index)
    for members in by_length.values():
        for start in range(0, len(members), MAX_ROWS):
            yield members[start : start + MAX_ROWS]
