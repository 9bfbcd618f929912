"""A sample for the metrics: its text, and how sure the model was of each of its first ten tokens."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import torch
from torch import Tensor

from bitnet.errors import NotFiniteError
from bitnet.files import stable_number
from bitnet.generate.decode import stream
from bitnet.generate.decoder import Decoder
from bitnet.generate.sampling import GREEDY, STRESS, TYPICAL
from bitnet.text.tokenizer import Tokenizer

MODES = {"greedy": GREEDY, "typical": TYPICAL, "stress": STRESS}
DETAILED = 10  # positions whose distribution is recorded (the seeds' figure)


def stable_seed(prompt_index: int, step: int, mode: str) -> int:
    """The same 32-bit seed for the same sample in every process (hash() is salted per process in Python)."""
    return stable_number(f"{prompt_index}|{step}|{mode}", size=4)


def entropy_nats(logits: Tensor) -> float:
    """Entropy of softmax(logits). logits: (V,)."""
    log_probs = logits.float().log_softmax(-1)
    return float(-(log_probs.exp() * log_probs).sum())


def snapshot(
    model: Decoder,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    mode: str,
    seed: int,
    max_new_tokens: int = 50,
    stop: str | None = None,
) -> dict[str, Any]:
    """One row of samples/samples.jsonl, without its step. Repetition is counted in the continuation only.

    Where the logits become NaN or infinite the sample ends, and `non_finite` is true.
    """
    prompt_ids = tokenizer.encode(prompt)
    stops = {tokenizer.eos_id, *(tokenizer.encode(stop) if stop else ())}
    new: list[int] = []
    details: list[dict[str, Any]] = []
    broken = False
    sampling = dataclasses.replace(MODES[mode], seed=seed)
    try:
        for chosen, logits in stream(model, prompt_ids, max_new_tokens=max_new_tokens, sampling=sampling):
            if len(details) < DETAILED:
                details.append({"pos": len(details), **_distribution(torch.as_tensor(logits), tokenizer)})
            new.append(chosen)
            if new[-1] in stops:
                break
    except NotFiniteError:
        broken = True

    entropies = [detail["entropy"] for detail in details]
    return {
        "prompt": prompt,
        "mode": mode,
        "seed": seed,
        "generated_text": prompt + tokenizer.decode(new),
        "generated_ids": prompt_ids + new,
        "mean_entropy": sum(entropies) / len(entropies) if entropies else None if broken else 0.0,
        "max_repetition": max(Counter(new).values(), default=0),
        "unique_tokens": len(set(new)),
        "total_tokens": len(new),
        "logits_first_10": details,
        "non_finite": broken,
    }


def _distribution(logits: Tensor, tokenizer: Tokenizer) -> dict[str, Any]:
    """entropy in nats, and the five most likely tokens. logits: (V,)."""
    probs, ids = logits.float().softmax(-1).topk(min(5, logits.shape[-1]))
    return {
        "entropy": entropy_nats(logits),
        "top5_tokens": [tokenizer.decode([token]) for token in ids.tolist()],
        "top5_probs": probs.tolist(),
    }
