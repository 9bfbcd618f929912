"""Encode each distinct word once: the same ids as the whole text at once, several times faster.

A byte-level BPE first cuts a text into pieces with a regular expression (GPT-2's) and merges bytes inside
each piece only. A text may therefore be cut anywhere between two pieces, and encoded part by part. This file
cuts at places that are such borders whatever stands around them:

    after a character that is not white space, before a space or a line break: no piece has white space behind
    text after a letter, before one of , . ! ? ; : " ' -: runs of letters end there after one of " ' “ ‘ ( [ *
    -, before an upper-case letter: runs of punctuation end there, and contractions ('s, 't)
        begin with lower-case letters

English text has few distinct parts, so most are found in a dictionary, as bytes that only have to be joined.
Python's idea of white space contains that of the library (it adds four control characters), so every cut made
here is one there too. Not here: which ids a part has; the library says that. Not for other pre-tokenizers.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PARTS = re.compile(
    r""" ?[A-Za-z]++(?=[ \n.,!?;:"'-])"""
    r"""|\s*+["'“‘(\[*-]++(?=[A-Z])"""
    r"""|\s*+\S++(?:(?![ \n])\s++\S++)*+"""
    r"""|\s++"""
)
PIECE_CHARACTERS = 1 << 20  # a 50 MB document is cut into pieces of this size, so that memory stays small
_PIECE_END = re.compile(r"(?<=\S)(?= )")
# Two generations are about 6 MB, which 4 MB of books fill: memory does not grow with the corpus.
GENERATION = 1 << 14
LONGEST_CACHED = 64

EncodeMany = Callable[[list[str]], list[list[int]]]


def pieces(text: str, size: int = PIECE_CHARACTERS) -> Iterator[str]:
    """The text in pieces of about `size` characters, each but the last ending before a space that follows
    text.
    """
    start = 0
    while len(text) - start > size:
        end = _PIECE_END.search(text, start + max(size, 1))
        if end is None:
            break
        yield text[start : end.start()]
        start = end.start()
    if start < len(text):
        yield text[start:]


class WordEncoder:
    """Encodes texts part by part, remembering the parts met last: up to GENERATION since the last turn, and
    those before it.

    A part that is met again in the older generation moves to the newer one, so that frequent words are never
    forgotten.
    """

    def __init__(self, encode_many: EncodeMany) -> None:
        self._encode_many = encode_many
        self._newer: dict[str, bytes] = {}
        self._older: dict[str, bytes] = {}

    def __call__(self, text: str) -> NDArray[np.uint32]:
        """The ids of a text."""
        import numpy as np

        return np.frombuffer(b"".join(self._piece(piece) for piece in pieces(text)), dtype=np.uint32)

    def _piece(self, text: str) -> bytes:
        """The ids of a text that is not long, four bytes each."""
        if len(self._newer) >= GENERATION:
            self._newer, self._older = {}, self._newer
        parts, newer, older = PARTS.findall(text), self._newer, self._older
        missing, room = set(parts).difference(newer), GENERATION - len(newer)
        again = [part for part in missing if part in older]
        new = [part for part in missing if part not in older]
        newer.update((part, older[part]) for part in again)
        if new:
            newer.update(
                (part, array("I", ids).tobytes())
                for part, ids in zip(new, self._encode_many(new), strict=True)
            )
        ids = b"".join(map(newer.__getitem__, parts))
        for place, part in enumerate((*again, *new)):
            if place >= room or len(part) > LONGEST_CACHED:
                del newer[part]
        return ids
