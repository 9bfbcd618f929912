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
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from bitnet.bounds import MOST_DOCUMENTS, MOST_ENTRIES, within
from bitnet.cli.flags import parse
from bitnet.cli.prepare import CorpusFlags
from bitnet.errors import ConfigError, DataError, did_you_mean

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
class InspectFlags:
    """Size, hash, longest tokens; with text or data also bytes per token and whether decoding gives it
    back.
    """

    tokenizer: Positional[str]
    """Folder of the tokenizer, or its name on the hub."""
    text: str | None = None
    """Text to encode and show."""
    data: tuple[str, ...] = ()
    """Documents to measure on."""
    column: str = "text"
    """Column with the text."""
    max_documents: int = 1000
    """Documents to measure on at most."""
    json: bool = False
    """Print the result as JSON on the last line."""


ACTIONS = {"train": TokenizerFlags, "inspect": InspectFlags}


def main(arguments: Sequence[str]) -> int:
    """`train` or `inspect`."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        if arguments:
            return 0
        raise ConfigError("say what to do: bitnet tokenizer train, or bitnet tokenizer inspect")
    action, *rest = arguments
    if action == "train":
        return train(parse(TokenizerFlags, rest, "tokenizer train"))
    if action == "inspect":
        return inspect(parse(InspectFlags, rest, "tokenizer inspect"))
    raise ConfigError(f"there is no `bitnet tokenizer {action}`.{did_you_mean(action, ACTIONS)}")


def train(flags: TokenizerFlags) -> int:
    """Train, and put the folder in place in one step."""
    within("--max-documents", flags.max_documents, 1, MOST_DOCUMENTS)
    within("--vocab-size", flags.vocab_size, 1, MOST_ENTRIES)
    if flags.out.exists() and not (
        flags.out.is_dir() and (_holds_tokenizer(flags.out) or not any(flags.out.iterdir()))
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
    put_in_place(tokenizer, flags.out)
    summary = {"out": str(flags.out), "vocab_size": tokenizer.vocab_size, **tokenizer.describe()}
    print(
        f"{flags.out}: {tokenizer.vocab_size:,} entries, sha256 {summary['tokenizer_sha256']}",
        file=sys.stderr if flags.json else sys.stdout,
    )
    if flags.json:
        print(json.dumps(summary))
    return 0


def _counted(texts: Iterable[str]) -> Iterator[str]:
    """The texts; says on standard error how many went by."""
    count, characters = 0, 0
    for text in texts:
        count, characters = count + 1, characters + len(text)
        if count % SAY_EVERY_DOCUMENTS == 0:
            print(
                f"{count:,} documents, {characters / 1e6:,.1f} million characters",
                file=sys.stderr,
                flush=True,
            )
        yield text
    print(
        f"{count:,} documents, {characters / 1e6:,.1f} million characters read; finding the vocabulary",
        file=sys.stderr,
        flush=True,
    )


def _holds_tokenizer(folder: Path) -> bool:
    from bitnet.text.characters import FILE_NAME
    from bitnet.text.subword import TOKENIZER_FILE

    return any((folder / name).is_file() for name in (TOKENIZER_FILE, FILE_NAME))


def put_in_place(tokenizer: Tokenizer, out: Path) -> None:
    """Save it. A folder that holds the same tokenizer already stays as it is."""
    from bitnet.text.tokenizer import load_tokenizer, save_in_place

    if out.is_dir() and _holds_tokenizer(out):
        if load_tokenizer(out).describe()["tokenizer_sha256"] == tokenizer.describe()["tokenizer_sha256"]:
            return
        raise DataError(f"{out} holds another tokenizer; delete it, or name a new folder with --out")
    save_in_place(tokenizer, out)


def inspect(flags: InspectFlags) -> int:
    """Measure a tokenizer, on text if there is any."""
    within("--max-documents", flags.max_documents, 1, MOST_DOCUMENTS)
    if flags.text is not None and flags.data:
        raise ConfigError("give --text or --data, not both")
    from bitnet.corpus.documents import LocalFiles, Skipped, usable_texts
    from bitnet.text.pretrained import find_tokenizer

    tokenizer = find_tokenizer(flags.tokenizer)
    summary: dict[str, Any] = {
        "vocab_size": tokenizer.vocab_size,
        **tokenizer.describe(),
        "longest_tokens": longest_tokens(tokenizer),
    }
    texts: Iterable[str] = [] if flags.text is None else [flags.text]
    skipped = Skipped()
    if flags.data:
        texts = islice(usable_texts(LocalFiles(flags.data, flags.column), skipped), flags.max_documents)
    summary |= measured(tokenizer, texts)
    if skipped:
        print(f"left out: {skipped}", file=sys.stderr)
    print(_page(summary, tokenizer, flags.text), file=sys.stderr if flags.json else sys.stdout)
    if flags.json:
        print(json.dumps(summary))
    return 0


def longest_tokens(tokenizer: Tokenizer) -> list[str]:
    """The tokens that stand for the most bytes, longest first."""
    order = tokenizer.byte_lengths().argsort(kind="stable")[::-1][:LONGEST_SHOWN]
    return [tokenizer.decode([index]) for index in order.tolist()]


def measured(tokenizer: Tokenizer, texts: Iterable[str]) -> dict[str, Any]:
    """documents, bytes, tokens, bytes per token, and whether every text came back; nothing where there is no
    text.
    """
    documents = size = tokens = lost = 0
    for text in texts:
        ids = tokenizer.encode(text)
        documents, size, tokens = documents + 1, size + len(text.encode()), tokens + len(ids)
        lost += tokenizer.decode(ids) != text
    if not tokens:
        return {}
    return {
        "documents": documents,
        "bytes": size,
        "tokens": tokens,
        "bytes_per_token": size / tokens,
        "round_trip": lost == 0,
        "changed": lost,
    }


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
