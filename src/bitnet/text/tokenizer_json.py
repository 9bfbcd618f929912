"""Read a tokenizer.json from anyone: the library does the reading, what it may do to a text is bounded here.

A file is refused with one DataError where the library cannot read or use it, where its steps could make a
text many times longer, and where its ids are none that an embedding should be made for. The library's panics
(of its Rust code) are caught too. Not here: using a tokenizer (subword.py).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

from bitnet.bounds import MOST_ENTRIES
from bitnet.errors import BitnetError, ConfigError, DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as LibraryTokenizer

COPY = "copy the folder again from where it came"
MOST_GROWTH = 1_000  # of a text by its tokenizer's replacements; that of sentencepiece vocabularies is 1
TRIED = "The 3 dogs\n"  # what a tokenizer must be able to encode and decode, or it is refused when it is read


def tokenizers_package() -> ModuleType:
    """The library, imported where it is needed."""
    try:
        import tokenizers
    except ImportError:
        raise ConfigError(
            "subword tokenizers need the package tokenizers; install it with: pip install 'bitnet[text]'"
        ) from None
    return tokenizers


def read_settings(content: str) -> dict[str, Any]:
    """The values of a tokenizer.json. Raises DataError for no object, and for steps that make a text many
    times longer.
    """
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"the tokenizer is not a readable tokenizer.json ({error}); {COPY}") from None
    if not isinstance(values, dict):
        raise DataError(f"the tokenizer.json holds a {type(values).__name__} where an object belongs; {COPY}")

    for name in ("normalizer", "decoder"):
        growth = math.prod(len(text) for text in _inserted(values.get(name)))
        if growth > MOST_GROWTH:
            raise DataError(
                f"the {name} of the tokenizer may make a text {growth:,} times longer, above "
                f"{MOST_GROWTH:,}; {COPY}"
            )
    return values


def _inserted(step: object) -> Iterator[str]:
    """The texts that a step, or one inside it, puts in place of others. Each may stand in for every character
    of the one before.
    """
    if isinstance(step, list):
        for part in step:
            yield from _inserted(part)
    elif isinstance(step, dict):
        content = step.get("content")
        if step.get("type") == "Replace" and isinstance(content, str) and content:
            yield content
        yield from _inserted([value for value in step.values() if isinstance(value, dict | list)])


def read_library_tokenizer(content: str) -> LibraryTokenizer:
    """The library's tokenizer, set to treat all text as text and to cut, pad and draw nothing. Raises
    DataError.

    It is tried on a text at once: some that can be read fail at the first word.
    """
    library_tokenizer = tokenizers_package().Tokenizer
    with _quiet(), library_errors("the tokenizer is not a readable tokenizer.json"):
        library: LibraryTokenizer = library_tokenizer.from_str(content)
        library.no_truncation()
        library.no_padding()
        library.encode_special_tokens = True
        if getattr(library.model, "dropout", None):
            library.model.dropout = None  # merges left out at random would give a text other ids each time
        library.decode(library.encode(TRIED, add_special_tokens=False).ids)
    return library


def check_ids(ids: Mapping[str, int]) -> None:
    """Raise DataError for ids that no embedding should be made for. The library itself refuses ids beyond
    uint32.
    """
    largest = max(ids.values(), default=-1)
    if not 0 <= largest < MOST_ENTRIES:
        raise DataError(
            f"the tokenizer's largest id is {largest:,}, above the {MOST_ENTRIES - 1:,} that are read; {COPY}"
        )
    if len(set(ids.values())) < len(ids):
        raise DataError(f"the tokenizer gives one id to several of its {len(ids):,} tokens; {COPY}")


@contextmanager
def library_errors(what: str) -> Iterator[None]:
    """Turn what the library raises into one DataError, panics of its Rust code included: they derive from
    BaseException.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, UnicodeEncodeError, TypeError, BitnetError):
        raise
    except BaseException as error:  # noqa: BLE001  the library raises nothing narrower
        raise DataError(f"{what} ({' '.join(str(error).split()):.200}); {COPY}") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what Rust prints of a panic from standard error: the message above says it."""
    try:
        kept = os.dup(2)
    except OSError:  # there is no standard error
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
