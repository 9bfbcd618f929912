"""Decide by a document's content whether it is held out for evaluation, before anything else sees it.

A document is hashed with its white space collapsed and its accents composed, so that copies that differ only
there are one. Without a validation file, those whose hash falls below a threshold (one in a hundred) are held
out, and with each all its copies. Where that would hold out none, the document with the smallest hash is.
With a validation file, that file is the held-out set, and training documents equal to one of its documents
are dropped. Near-duplicates are not detected.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from itertools import islice

from bitnet.corpus.documents import DocumentSource, usable_texts
from bitnet.errors import ConfigError, DataError
from bitnet.text.word_cache import pieces

HASH_BYTES = 16
HASHES = 1 << (8 * HASH_BYTES)
ONE_IN = 100


class Role(IntEnum):
    """What becomes of a document."""

    TRAIN = 0
    HELD_OUT = 1
    DROPPED = 2  # equal to a document of the validation file


def content_hash(text: str) -> bytes:
    """16 bytes of the SHA-256 of a text whose white space is collapsed and whose accents are composed
    (NFC).
    """
    digest = hashlib.sha256()
    for piece in pieces(text):  # each begins with the space it was cut before
        composed = unicodedata.normalize("NFC", piece)  # returns at once what is composed already
        digest.update(" ".join(composed.split()).encode() + b" ")
    return digest.digest()[:HASH_BYTES]


@dataclass(frozen=True)
class HoldOut:
    """below: hashes under it, read as a number, are held out; validation: hashes that must never be trained
    on.
    """

    below: int
    validation: frozenset[bytes] = frozenset()

    def role(self, digest: bytes) -> Role:
        """What becomes of the document with this hash."""
        if digest in self.validation:
            return Role.DROPPED
        return Role.HELD_OUT if int.from_bytes(digest, "big") < self.below else Role.TRAIN


EVERYTHING = HoldOut(HASHES)
"""For the documents of a validation file."""


def choose_hold_out(
    source: DocumentSource, one_in: int = ONE_IN, max_documents: int | None = None
) -> HoldOut:
    """The rule for a source without a validation file.

    Reads until one document is held out and one is not; only a small source is read to its end. Raises
    DataError where it has no two different documents.
    """
    if one_in < 2:
        raise ConfigError(f"one document in {one_in} cannot be held out; it must be at least one in 2")
    below = HASHES // one_in
    seen: set[int] = set()
    kept = 0
    for digest in islice(content_hashes(source), max_documents):
        number = int.from_bytes(digest, "big")
        seen.add(number)
        kept += number < below
        if 0 < kept < len(seen):
            return HoldOut(below)

    if len(seen) < 2:
        if max_documents is not None and max_documents < 2:
            raise ConfigError(
                f"--max-documents is {max_documents}, and one document must be held out; it must be at least "
                "2"
            )
        raise DataError(
            f"{source.name} has {len(seen)} different document{'s' * (len(seen) != 1)}, and some must be "
            "held out; give more documents (in a .txt they end at a line <|endoftext|>), or a validation "
            "file with --validation"
        )
    return HoldOut(min(seen) + 1)


def content_hashes(source: DocumentSource) -> Iterator[bytes]:
    """Hashes of the documents. Raises DataError where there are none."""
    return map(content_hash, usable_texts(source))
