"""Figures about a tokenizer: its longest tokens, bytes per token, and whether texts survive a round trip."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from bitnet.text.tokenizer import Tokenizer


def longest_tokens(tokenizer: Tokenizer, count: int) -> list[str]:
    """The tokens that stand for the most bytes, longest first."""
    order = tokenizer.byte_lengths().argsort(kind="stable")[::-1][:count]
    return [tokenizer.decode([index]) for index in order.tolist()]


def compression(tokenizer: Tokenizer, texts: Iterable[str]) -> dict[str, Any]:
    """documents, bytes, tokens, bytes_per_token, and how many texts were changed by encoding and decoding.

    Empty where the texts hold no token.
    """
    documents = size = tokens = changed = 0
    for text in texts:
        ids = tokenizer.encode(text)
        documents, size, tokens = documents + 1, size + len(text.encode()), tokens + len(ids)
        changed += tokenizer.decode(ids) != text

    if not tokens:
        return {}
    return {
        "documents": documents,
        "bytes": size,
        "tokens": tokens,
        "bytes_per_token": size / tokens,
        "round_trip": changed == 0,
        "changed": changed,
    }
