"""Does generation do what it is asked: the model's own next tokens, chosen by the rule that was named?
Suspect: decoding.

Cached steps are compared with the model's own logits for the whole prefix, so that a wrong model decodes
"right" here; choosing is compared with definitions (check_sampling.py). A decoder that fails here prints
garbage whatever the model has learned.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor

from bitnet.diagnose import check_sampling
from bitnet.diagnose.finding import STRONG, Check, Part, Suspect, worst
from bitnet.diagnose.subject import Subject, copy_of
from bitnet.diagnose.trace import made_loud, off, random_ids
from bitnet.diagnose.twin import KINDS, VOCABULARY, twin_of
from bitnet.generate import decode, snapshot
from bitnet.generate.sampling import Sampling
from bitnet.nn.transformer import BitNetTransformer
from bitnet.text.tokenizer import Tokenizer

CACHED, LOUD_CACHED = 1e-2, 0.05
"""Relative error between cached and whole logits: equal products in another order, and now and then a value
on the edge of a code. Where attention is made loud, so that a wrong position shows, such a value weighs more;
a wrong position moves the logits by 0.2."""
LAST, PIECE = 12, 24  # tokens decoded one by one at the end of a row; a twin's prompt
LONGEST_TRIED = 1 << 14
FORWARD: frozenset[Suspect] = frozenset({"quantization"})
DECODING = Part("decoding", "the model's own logits for the whole prefix")


def decoding(subject: Subject) -> Iterator[Check]:
    """All checks of this file."""
    yield from cache(subject)
    yield from late_positions(subject)
    yield from greedy(subject)
    yield from check_sampling.distributions()
    yield from draws(subject)
    yield from stops(subject)
    yield from prompts_in_order(subject)
    yield from samples(subject)
    yield from completions(subject)


def _prompt(subject: Subject, rows: int, tokens: int) -> Tensor:
    return random_ids(
        subject.config.vocab_size, rows, min(tokens, subject.config.max_seq_length // 2), subject.device
    )


@torch.no_grad()
def cache(subject: Subject) -> Iterator[Check]:
    """Prompt in one piece, in two, and token by token: always the logits of the whole. Once more where
    attention is loud.
    """
    ids = _prompt(subject, 3, 24)
    for kind, model, limit in (
        ("", subject.model, CACHED),
        (", loud attention", made_loud(copy_of(subject, subject.model)), LOUD_CACHED),
    ):
        error, where = worst(_cached_errors(model, ids))
        yield DECODING(
            f"cached decoding equals full recomputation{kind}",
            f"{where}: keys, values or positions in the cache are wrong",
            explained_by=FORWARD,
        ).below(error, limit)


def _cached_errors(model: BitNetTransformer, ids: Tensor) -> dict[str, float]:
    """How far cached logits are from whole ones, by the way that they were computed. ids: (3, T)."""
    whole = model(ids)
    errors: dict[str, float] = {}
    cuts = {
        "in one piece": [0],
        "in two pieces": [0, ids.shape[1] // 2],
        "token by token": list(range(ids.shape[1])),
    }
    for way, starts in cuts.items():
        store = model.new_cache(len(ids), ids.shape[1])
        parts = [
            model(ids[:, begin:end], store)
            for begin, end in zip(starts, [*starts[1:], ids.shape[1]], strict=True)
        ]
        errors[way] = off(torch.cat(parts, dim=1), whole)
    store = model.new_cache(len(ids), ids.shape[1])
    model(ids[:, :-1], store)
    store.select(torch.tensor([2, 0], device=ids.device))
    errors["after dropping a row"] = off(model(ids[[2, 0], -1:], store)[:, -1], whole[[2, 0], -1])
    store = model.new_cache(len(ids), ids.shape[1])
    model(ids[:, :-4], store)
    rows = torch.tensor([1, 1, 0], device=ids.device)
    branch = store.branch(rows, 4)
    errors["after branching"] = off(model(ids[rows, -4:], branch), whole[rows, -4:])
    return errors


@torch.no_grad()
def late_positions(subject: Subject) -> Iterator[Check]:
    """Up to the last position that the model has: the examined model's last tokens, and a twin in small
    pieces all the way.

    Nothing for models of more than LONGEST_TRIED positions, whose attention over all of them takes minutes to
    days.
    """
    length = subject.config.max_seq_length
    if length > LONGEST_TRIED:
        return
    model = made_loud(copy_of(subject, subject.model))
    last = random_ids(subject.config.vocab_size, 1, length, subject.device)
    errors = {"the last tokens": _pieces(model, last, max(length - LAST, 1), LAST)}
    twin = twin_of(subject, KINDS[0])
    ids = random_ids(VOCABULARY, 2, twin.config.max_seq_length, subject.device)
    errors["a twin in small pieces"] = _pieces(twin.model, ids, PIECE, PIECE)
    yield DECODING(
        "cached decoding equals full recomputation, to the last position",
        f"{worst(errors)[1]}: keys, values or positions are wrong late in a row",
        explained_by=FORWARD,
    ).below(max(errors.values()), LOUD_CACHED)
    room = min(4, length - 1)
    made = decode.generate(model, last[:, : length - room], max_new_tokens=10 * length).shape[1]
    yield DECODING(
        "generation goes on to the last position",
        "generation stops before the model's length is used, or goes beyond it",
        source="model.max_seq_length",
    ).holds(made == length + 1, made, f"{length + 1}: the token after the last position that is read")


def _pieces(model: BitNetTransformer, ids: Tensor, first: int, last: int) -> float:
    """Error of cached logits: a prompt of `first` tokens, then pieces of 1 to 7, and the last `last` tokens
    one by one.
    """
    whole = model(ids)
    store = model.new_cache(len(ids), ids.shape[1])
    parts, place, size = [model(ids[:, :first], store)], first, 0
    while place < ids.shape[1]:
        size = 1 if place >= ids.shape[1] - last else size % 7 + 1
        parts.append(model(ids[:, place : place + size], store))
        place += size
    return off(torch.cat(parts, dim=1), whole)


@torch.no_grad()
def greedy(subject: Subject) -> Iterator[Check]:
    """What `generate` returns greedily is the prompt and the argmax of the whole prefix, step by step, up to
    the model's length.
    """
    model = made_loud(copy_of(subject, subject.model))
    ids = _prompt(subject, 2, 8)
    count = min(16, model.config.max_seq_length - ids.shape[1])
    out = decode.generate(model, ids, max_new_tokens=count)
    gaps, errors = [], {}
    kept = out.shape == (2, ids.shape[1] + count) and bool((out[:, : ids.shape[1]] == ids).all())
    if kept:
        scores = model(out[:, :-1])[:, ids.shape[1] - 1 :].double()  # (2, count, V)
        chosen = scores.gather(-1, out[:, ids.shape[1] :].unsqueeze(-1)).squeeze(-1)
        spread = scores.std(dim=-1).clamp(min=1e-9)
        gaps = ((scores.max(dim=-1).values - chosen) / spread).flatten().tolist()
    for position, (new, logits) in enumerate(decode.stream(model, ids, max_new_tokens=min(4, count))):
        prefix = out[:, : ids.shape[1] + position]
        errors[f"position {position}"] = off(logits, model(prefix)[:, -1])
        if not bool((new == logits.argmax(-1)).all()):
            gaps.append(math.inf)
    gap = max(gaps, default=math.inf)
    yield DECODING(
        "greedy takes the most likely token",
        "another token than the most likely is taken, or the prompt is changed",
        source="definition of greedy decoding, on the model's own logits",
        explained_by=FORWARD,
    ).holds(kept and gap <= 0.05, gap, "within 0.05 standard deviations of the largest logit, at every step")
    error, where = worst(errors)
    yield DECODING(
        "streamed logits are the model's", f"{where}: the decoder reads other logits", explained_by=FORWARD
    ).below(error, LOUD_CACHED)


def draws(subject: Subject) -> Iterator[Check]:
    """A seed gives the same text again, another seed another text, through the whole decoder."""
    ids = _prompt(subject, 4, 6)
    wild = Sampling(temperature=50.0, seed=11)
    count = min(12, subject.config.max_seq_length - ids.shape[1])
    first, again, other = (
        decode.generate(
            subject.model, ids, max_new_tokens=count, sampling=dataclasses.replace(wild, seed=seed)
        )
        for seed in (11, 11, 12)
    )
    same, differ = torch.equal(first, again), not torch.equal(first, other)
    rows_differ = not bool((first[:, ids.shape[1] :] == first[:1, ids.shape[1] :]).all())
    most = max(
        int(torch.bincount(row).max()) for row in first[:, ids.shape[1] :].cpu()
    )  # nearly even draws: hardly one twice
    moves_on = count < 6 or most <= count / 2
    yield DECODING(
        "seeds decide the draws", "the seed is ignored, or fixed", source="definition of a seed"
    ).holds(
        same and differ and rows_differ and moves_on,
        {"repeats": same, "differs": differ, "rows_differ": rows_differ, "positions_differ": moves_on},
        "equal seeds equal text, other seeds other text, new numbers for each row and position",
    )
    seeds = {
        (index, step, mode): snapshot.stable_seed(index, step, mode)
        for index in (0, 1, 4)
        for step in (1, 500, 1_000, 60_000, 400_000)
        for mode in ("greedy", "typical")
    }
    right = {
        key: int.from_bytes(hashlib.sha256("|".join(map(str, key)).encode()).digest()[:4], "big")
        for key in seeds
    }
    yield DECODING(
        "sample seeds are stable",
        "samples of different steps cannot be compared or repeated",
        source="docs/run-directory.md",
        weight=STRONG,
    ).holds(seeds == right, seeds == right, "SHA-256 of prompt number, step and mode")


class _Ending:
    """The task's tokenizer with another id for the end of text."""

    def __init__(self, inner: Tokenizer, eos_id: int) -> None:
        self._inner, self.eos_id = inner, eos_id

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)


def _new_ids(subject: Subject, prompt: Tensor, count: int) -> list[int]:
    """Varied continuation of one prompt: by a fixed seed, at a temperature that keeps it from repeating."""
    out = decode.generate(
        subject.model, prompt, max_new_tokens=count, sampling=Sampling(temperature=50.0, seed=5)
    )
    return [int(token) for token in out[0, prompt.shape[1] :]]


def stops(subject: Subject) -> Iterator[Check]:
    """Generation ends with the stop token when it comes, not before and not after."""
    prompt = _prompt(subject, 1, 6)
    new = _new_ids(subject, prompt, min(12, subject.config.max_seq_length - prompt.shape[1]))
    place = next((i for i in range(2, len(new)) if new[i] not in new[:i]), 0)
    wild = Sampling(temperature=50.0, seed=5)
    ended = decode.generate(
        subject.model, prompt, max_new_tokens=len(new), sampling=wild, stop_ids=(new[place],)
    )
    lists = decode.continue_prompts(
        subject.model, [prompt[0].tolist()], max_new_tokens=len(new), stop_id=new[place], sampling=wild
    )
    got = [ended.shape[1] - prompt.shape[1], len(lists[0])]
    yield DECODING(
        "generation ends at the stop token",
        "the end of text does not end it, or it ends too early",
        source="definition of a stop token",
    ).holds(got == [place + 1] * 2, got, f"{place + 1} new tokens, the stop token the last")
    text = next((p for p in subject.task.prompts if subject.task.tokenizer.encode(p)), None)
    if text is None:
        return
    ids = torch.tensor([subject.task.tokenizer.encode(text)], device=subject.device)
    room = min(10, subject.config.max_seq_length - ids.shape[1])
    greedy_ids = [int(t) for t in decode.generate(subject.model, ids, max_new_tokens=room)[0, ids.shape[1] :]]
    tokenizer: object = _Ending(subject.task.tokenizer, greedy_ids[0])
    row = snapshot.snapshot(subject.model, tokenizer, text, mode="greedy", seed=1, max_new_tokens=room)  # type: ignore[arg-type]
    yield DECODING(
        "samples end at the end of text", "samples run on after the end of text", source="definition"
    ).holds(row["total_tokens"] == 1, row["total_tokens"], "1: the end of text came first")


def prompts_in_order(subject: Subject) -> Iterator[Check]:
    """Answers come back in the order of the prompts, each as if asked alone."""
    vocabulary = subject.config.vocab_size
    lengths = [5, 3, 5, 4]
    prompts = [
        random_ids(vocabulary, 1, length + index, subject.device)[0, index:].tolist()
        for index, length in enumerate(lengths)
    ]
    together = decode.continue_prompts(subject.model, prompts, max_new_tokens=4, stop_id=vocabulary)
    alone = [
        decode.generate(subject.model, torch.tensor([p], device=subject.device), max_new_tokens=4)[
            0, len(p) :
        ].tolist()
        for p in prompts
    ]
    share = sum(a == b for a, b in zip(together, alone, strict=True)) / len(prompts)
    yield DECODING(
        "answers belong to their prompts",
        "answers are given to other prompts, or batching changes them",
        source="prompts of a batch do not see each other",
    ).holds(share >= 0.75, share, ">= 0.75 equal to the prompt's own continuation (ties)")


def completions(subject: Subject) -> Iterator[Check]:
    """What `bitnet complete` says is the text of the model's greedy ids, up to the end of text."""
    tokenizer = subject.task.tokenizer
    text = next(iter(subject.task.prompts))
    ids = tokenizer.encode(text)
    room = min(8, subject.config.max_seq_length - len(ids))
    new = decode.generate(subject.model, torch.tensor([ids], device=subject.device), max_new_tokens=room)[
        0, len(ids) :
    ].tolist()
    right = tokenizer.decode(new[: new.index(tokenizer.eos_id)] if tokenizer.eos_id in new else new)
    told = subject.complete(tokenizer, text, room)
    ending = cast(Tokenizer, _Ending(tokenizer, new[0]))
    early = subject.complete(ending, text, room)
    yield DECODING(
        "completions are the model's greedy text",
        "bitnet complete shows another text than the model's",
        source="the model's own greedy ids",
    ).holds(
        told.rstrip("\ufffd") == right.rstrip("\ufffd") and not early,
        [told, early],
        f"{[right, '']}: the whole, and nothing where the end of text comes first",
    )


def samples(subject: Subject) -> Iterator[Check]:
    """A recorded sample is the text it says, with the entropy it says."""
    text = next(iter(subject.task.prompts))
    ids = subject.task.tokenizer.encode(text)
    room = min(8, subject.config.max_seq_length - len(ids))
    row = snapshot.snapshot(
        subject.model, subject.task.tokenizer, text, mode="greedy", seed=1, max_new_tokens=room
    )
    with torch.no_grad():
        first = subject.model(torch.tensor([ids], device=subject.device))[0, -1].double().log_softmax(-1)
    entropy = float(-(first.exp() * first).sum())
    told = float(row["logits_first_10"][0]["entropy"])
    new = row["generated_ids"][len(ids) :]
    whole = len(new) == room or new[-1:] == [subject.task.tokenizer.eos_id]
    kept = whole and row["generated_ids"][: len(ids)] == ids and row["generated_text"].startswith(text)
    yield DECODING(
        "samples are recorded as they are",
        "what samples.jsonl says about a sample is not what the model said",
        source="the model's own logits",
        weight=STRONG,
        explained_by=FORWARD,
    ).holds(
        kept and abs(told - entropy) < 0.02 * max(1.0, entropy),
        told,
        f"entropy of the first token {entropy:.4f} nats",
    )
