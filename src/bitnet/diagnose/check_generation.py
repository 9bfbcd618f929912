"""What is generated as a whole: seeds, stops, answers to several prompts, recorded samples, completions.
Suspect: decoding.

Not here: the logits of cached steps (check_decoding.py), and the choice of one token (check_sampling.py).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import torch

from bitnet.diagnose.finding import STRONG, Check, Part
from bitnet.diagnose.subject import Subject
from bitnet.diagnose.trace import random_ids
from bitnet.generate import decode, snapshot
from bitnet.generate.sampling import GREEDY, Sampling
from bitnet.text.tokenizer import Tokenizer

GENERATION = Part("decoding", "definitions of seed, stop and prompt; the model's own greedy ids")
SAMPLES = Part("decoding", "docs/run-directory.md; the model's own logits", weight=STRONG)
WILD = Sampling(temperature=50.0, seed=5)
"""So hot that every token is nearly as likely as any other, whatever the model has learned."""


class Ending:
    """The task's tokenizer with another id for the end of text."""

    def __init__(self, inner: Tokenizer, eos_id: int) -> None:
        self._inner, self.eos_id = inner, eos_id

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def generation(subject: Subject) -> Iterator[Check]:
    """All checks of this file."""
    yield from seeds(subject)
    yield from stops(subject)
    yield from prompts_in_order(subject)
    text = next((prompt for prompt in subject.task.prompts if subject.task.tokenizer.encode(prompt)), None)
    if text is not None:
        yield from samples(subject, text)
        yield from completions(subject, text)


def continued(
    subject: Subject, prompt: Sequence[int], count: int, how: Sampling = GREEDY, stop_ids: Sequence[int] = ()
) -> list[int]:
    """At most `count` new ids after a prompt; fewer where the model has no more positions."""
    ids = torch.tensor([prompt], device=subject.device)
    room = min(count, subject.config.max_seq_length - len(prompt))
    out = decode.generate(subject.model, ids, max_new_tokens=room, sampling=how, stop_ids=tuple(stop_ids))
    return [int(token) for token in out[0, len(prompt) :]]


def random_prompt(subject: Subject, tokens: int) -> list[int]:
    """Random ids; fewer where the model has few positions."""
    tokens = min(tokens, subject.config.max_seq_length // 2)
    ids: list[int] = random_ids(subject.config.vocab_size, 1, tokens, subject.device)[0].tolist()
    return ids


def seeds(subject: Subject) -> Iterator[Check]:
    """A seed gives the same text again, another seed another text, through the whole decoder."""
    tokens = min(6, subject.config.max_seq_length // 2)
    ids = random_ids(subject.config.vocab_size, 4, tokens, subject.device)
    count = min(12, subject.config.max_seq_length - tokens)

    def drawn(seed: int) -> torch.Tensor:
        how = dataclasses.replace(WILD, seed=seed)
        return decode.generate(subject.model, ids, max_new_tokens=count, sampling=how)[:, tokens:]

    first, again, other = drawn(11), drawn(11), drawn(12)
    most = max(int(torch.bincount(row).max()) for row in first.cpu())  # of even draws, hardly one comes twice
    held = {
        "repeats": torch.equal(first, again),
        "differs": not torch.equal(first, other),
        "rows_differ": not bool((first == first[:1]).all()),
        "positions_differ": count < 6 or most <= count / 2,
    }
    yield GENERATION("seeds decide the draws", "the seed is ignored, or fixed").holds(
        all(held.values()), held, "equal seeds equal text; new numbers for each seed, row and position"
    )

    keys = list(product((0, 1, 4), (1, 500, 1_000, 60_000, 400_000), ("greedy", "typical")))
    digests = [hashlib.sha256("|".join(map(str, key)).encode()).digest() for key in keys]
    same = [snapshot.stable_seed(*key) for key in keys] == [int.from_bytes(one[:4], "big") for one in digests]
    yield SAMPLES("sample seeds are stable", "samples of different steps cannot be compared").holds(
        same, same, "SHA-256 of prompt number, step and mode"
    )


def stops(subject: Subject) -> Iterator[Check]:
    """Generation ends with the stop token when it comes, not before and not after."""
    prompt = random_prompt(subject, 6)
    new = continued(subject, prompt, 12, WILD)
    place = next((index for index in range(2, len(new)) if new[index] not in new[:index]), 0)
    ended = continued(subject, prompt, len(new), WILD, [new[place]])
    (listed,) = decode.continue_prompts(
        subject.model, [prompt], max_new_tokens=len(new), stop_id=new[place], sampling=WILD
    )
    yield GENERATION("generation ends at the stop token", "it goes on after it, or ends too early").equal(
        [len(ended), len(listed)], [place + 1] * 2
    )


def prompts_in_order(subject: Subject) -> Iterator[Check]:
    """Answers come back in the order of the prompts, each as if asked alone."""
    vocabulary, lengths = subject.config.vocab_size, (5, 3, 5, 4)
    prompts = [
        random_ids(vocabulary, 1, length + index, subject.device)[0, index:].tolist()
        for index, length in enumerate(lengths)
    ]
    together = decode.continue_prompts(subject.model, prompts, max_new_tokens=4, stop_id=vocabulary)
    alone = [continued(subject, prompt, 4) for prompt in prompts]
    share = sum(a == b for a, b in zip(together, alone, strict=True)) / len(prompts)
    other = "answers are given to other prompts, or batching changes them"
    yield GENERATION("answers belong to their prompts", other).at_least(
        share, 0.75, "equal to the prompt's own continuation (ties)"
    )


def samples(subject: Subject, text: str) -> Iterator[Check]:
    """A recorded sample is the text it says, with the entropy it says, and ends at the end of text."""
    tokenizer = subject.task.tokenizer
    ids = tokenizer.encode(text)
    room = min(8, subject.config.max_seq_length - len(ids))

    def sample(tokenizer: Any) -> dict[str, Any]:
        return snapshot.snapshot(subject.model, tokenizer, text, mode="greedy", seed=1, max_new_tokens=room)

    early = sample(Ending(tokenizer, continued(subject, ids, 1)[0]))["total_tokens"]
    yield GENERATION("samples end at the end of text", "samples run on after it").equal(early, 1)

    row = sample(tokenizer)
    with torch.no_grad():
        first = subject.model(torch.tensor([ids], device=subject.device))[0, -1].double().log_softmax(-1)
    entropy, told = float(-(first.exp() * first).sum()), float(row["logits_first_10"][0]["entropy"])
    new = row["generated_ids"][len(ids) :]
    whole = len(new) == room or new[-1:] == [tokenizer.eos_id]
    kept = whole and row["generated_ids"][: len(ids)] == ids and row["generated_text"].startswith(text)
    other = "what samples.jsonl says about a sample is not what the model said"
    yield SAMPLES("samples are recorded as they are", other, explained_by=frozenset({"quantization"})).holds(
        kept and abs(told - entropy) < 0.02 * max(1.0, entropy), told, f"first entropy {entropy:.4f} nats"
    )


def completions(subject: Subject, text: str) -> Iterator[Check]:
    """What `bitnet complete` says is the text of the model's greedy ids, up to the end of text."""
    tokenizer = subject.task.tokenizer
    new = continued(subject, tokenizer.encode(text), 8)
    right = tokenizer.decode(new[: new.index(tokenizer.eos_id)] if tokenizer.eos_id in new else new)
    told = subject.complete(tokenizer, text, len(new))
    early = subject.complete(Ending(tokenizer, new[0]), text, len(new))
    other = "bitnet complete shows another text than the model's"
    yield GENERATION("completions are the model's greedy text", other).holds(
        told.rstrip("\ufffd") == right.rstrip("\ufffd") and not early,
        [told, early],
        f"{[right, '']}: the whole, and nothing where the end of text comes first",
    )
