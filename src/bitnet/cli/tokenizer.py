"""`bitnet tokenizer train`: byte-level BPE from documents. `bitnet tokenizer inspect DIR`: what one does to
text.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import Positional

from bitnet.bounds import MOST_DOCUMENTS, MOST_ENTRIES, within
from bitnet.cli.flags import Action, JsonFlags, run_action
from bitnet.cli.prepare import CorpusFlags
from bitnet.errors import ConfigError, DataError
from bitnet.units import short_count

if TYPE_CHECKING:
    from bitnet.text.tokenizer import Tokenizer

LONGEST_SHOWN = 12
USAGE = """usage: bitnet tokenizer train --data PATH... --vocab-size N --out DIR
       bitnet tokenizer inspect DIR [--text T | --data PATH...]
with --help after train or inspect: all flags"""
SAY_EVERY_DOCUMENTS = 10_000


@dataclass(frozen=True, kw_only=True)
class TokenizerFlags(CorpusFlags):
    """Make a tokenizer from documents; those that `bitnet prepare` holds out are left out."""

    vocab_size: int
    """Entries, special tokens and the 256 bytes included."""
    out: Path
    """Folder to write, in Hugging Face's form (characters: characters.json)."""
    kind: Literal["bpe", "characters"] = "bpe"
    """characters: one token per character, the most frequent ones."""
    max_documents: int = 100_000
    """Documents to learn from at most; drawn with the seed where there are more."""


@dataclass(frozen=True, kw_only=True)
class InspectFlags(JsonFlags):
    """Show a tokenizer's size, hash and longest tokens; with --text or --data also what it does to text."""

    tokenizer: Annotated[Positional[str], tyro.conf.arg(metavar="TOKENIZER")]
    """Folder of the tokenizer, or its name on the hub."""
    text: str | None = None
    """Text to encode and show."""
    data: tuple[str, ...] = ()
    """Documents to measure on."""
    column: str = "text"
    """Column with the text."""
    max_documents: int = 1000
    """Documents to measure on at most."""


def main(arguments: Sequence[str]) -> int:
    """`train` or `inspect`."""
    actions: dict[str, Action] = {"train": (TokenizerFlags, train), "inspect": (InspectFlags, inspect)}
    return run_action("tokenizer", USAGE, actions, arguments)


def train(flags: TokenizerFlags) -> int:
    """Train, and put the folder in place in one step."""
    within("--max-documents", flags.max_documents, 1, MOST_DOCUMENTS)
    within("--vocab-size", flags.vocab_size, 1, MOST_ENTRIES)
    from bitnet.text.tokenizer import holds_tokenizer, save_or_keep

    if flags.out.exists() and not (
        flags.out.is_dir() and (holds_tokenizer(flags.out) or not any(flags.out.iterdir()))
    ):
        raise DataError(f"{flags.out} exists and holds no tokenizer; name a new folder with --out")
    from bitnet.corpus.corpus import open_corpus
    from bitnet.corpus.documents import Skipped
    from bitnet.text.bpe import train_bpe
    from bitnet.text.characters import CharacterTokenizer

    corpus = open_corpus(
        flags.data,
        dataset=flags.dataset,
        split=flags.split,
        column=flags.column,
        validation=flags.validation,
        one_in=flags.held_out_one_in,
        seed=flags.seed,
    )
    skipped = Skipped()
    texts = _counted(corpus.sampled_texts(flags.max_documents, flags.seed, skipped))
    tokenizer: Tokenizer
    if flags.kind == "characters":
        tokenizer = CharacterTokenizer.count(texts, flags.vocab_size)
        if tokenizer.used < flags.vocab_size:
            raise DataError(
                f"the data supports a vocabulary of {tokenizer.used:,} entries only, each with a character "
                "of its own; "
                f"{flags.vocab_size:,} are asked for; give more text, or ask for {tokenizer.used}"
            )
    else:
        tokenizer = train_bpe(texts, flags.vocab_size, show_progress=sys.stderr.isatty())
    if skipped:
        print(f"left out: {skipped}", file=sys.stderr)
    save_or_keep(tokenizer, flags.out)
    summary = {"out": str(flags.out), "vocab_size": tokenizer.vocab_size, **tokenizer.describe()}
    print(
        f"{flags.out}: {tokenizer.vocab_size:,} entries, sha256 {summary['tokenizer_sha256']}",
        file=sys.stderr if flags.json else sys.stdout,
    )
    if flags.json:
        print(json.dumps(summary))
    return 0


def _counted(texts: Iterable[str]) -> Iterator[str]:
    """The texts; says on standard error how many were read."""
    count, characters = 0, 0
    for text in texts:
        count, characters = count + 1, characters + len(text)
        if count % SAY_EVERY_DOCUMENTS == 0:
            _say_read(count, characters)
        yield text
    _say_read(count, characters, "; finding the vocabulary")


def _say_read(documents: int, characters: int, then: str = "") -> None:
    line = f"{documents:,} documents, {short_count(characters)} characters read{then}"
    print(line, file=sys.stderr, flush=True)


def inspect(flags: InspectFlags) -> int:
    """Measure a tokenizer, on text if there is any."""
    within("--max-documents", flags.max_documents, 1, MOST_DOCUMENTS)
    if flags.text is not None and flags.data:
        raise ConfigError("give --text or --data, not both")
    from bitnet.corpus.documents import LocalFiles, Skipped, usable_texts
    from bitnet.text.inspect import compression, longest_tokens
    from bitnet.text.pretrained import find_tokenizer

    tokenizer = find_tokenizer(flags.tokenizer)
    summary: dict[str, Any] = {
        "vocab_size": tokenizer.vocab_size,
        **tokenizer.describe(),
        "longest_tokens": longest_tokens(tokenizer, LONGEST_SHOWN),
    }
    texts: Iterable[str] = [] if flags.text is None else [flags.text]
    skipped = Skipped()
    if flags.data:
        texts = islice(usable_texts(LocalFiles(flags.data, flags.column), skipped), flags.max_documents)
    summary |= compression(tokenizer, texts)
    if skipped:
        print(f"left out: {skipped}", file=sys.stderr)
    print(_page(summary, tokenizer, flags.text), file=sys.stderr if flags.json else sys.stdout)
    if flags.json:
        print(json.dumps(summary))
    return 0


def _page(summary: dict[str, Any], tokenizer: Tokenizer, text: str | None) -> str:
    lines = [
        f"{summary['tokenizer']}: {summary['vocab_size']:,} entries, sha256 {summary['tokenizer_sha256']}",
        f"  special ids      pad {tokenizer.pad_id}, begin {tokenizer.bos_id}, end {tokenizer.eos_id}",
        f"  longest tokens   {'  '.join(map(repr, summary['longest_tokens']))}",
    ]
    if "tokens" in summary:
        back = (
            "every text came back"
            if summary["round_trip"]
            else f"{summary['changed']} of {summary['documents']} texts did NOT come back"
        )
        counts = f"{summary['bytes']:,} bytes, {summary['tokens']:,} tokens"
        lines += [
            f"  bytes per token  {summary['bytes_per_token']:.3f}   ({counts})",
            f"  round trip       {back}",
        ]
    if text is not None:
        lines.append(
            "  " + " ".join(f"{index}:{tokenizer.decode([index])!r}" for index in tokenizer.encode(text))
        )
    return "\n".join(lines)
