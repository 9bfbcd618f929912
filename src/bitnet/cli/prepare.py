"""`bitnet prepare NAME --out FILE`: the data of an experiment as a file. `bitnet prepare --data PATH... --out
DIR`: token shards.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from tyro.conf import Positional

from bitnet.bounds import within
from bitnet.cli.flags import JsonFlags, last_value, parse, with_sections
from bitnet.cli.registry import experiment_names, find_experiment, find_variant
from bitnet.errors import ConfigError, DataError
from bitnet.files import replacing
from bitnet.terminal import LiveLine

if TYPE_CHECKING:
    from bitnet.data.shards import Shards

MOST_LINES = 10**9  # some 15 GB of arithmetic


@dataclass(frozen=True, kw_only=True)
class PrepareFlags:
    """Write the data of an experiment to a text file."""

    experiment: Annotated[Positional[str], tyro.conf.arg(metavar="NAME")]
    """Which experiment's data."""
    out: Path
    """Text file to write; it must not exist yet."""
    count: int = 1_000_000
    """Lines to write."""
    variant: str = "reference"
    """Whose settings to use."""


@dataclass(frozen=True, kw_only=True)
class CorpusFlags(JsonFlags):
    """Which documents."""

    data: tuple[str, ...] = ()
    """Files (.txt, .jsonl, each also .gz .xz .zst, .parquet), folders of them, or patterns."""
    dataset: str | None = None
    """Instead of --data: a data set of the hub, NAME or NAME:CONFIG, streamed and shuffled."""
    split: str = "train"
    """Split of the data set."""
    column: str = "text"
    """Column with the text."""
    validation: tuple[str, ...] = ()
    """Files that are the held-out set, never trained on; without it, a hash chooses documents."""
    held_out_one_in: int = 100
    """Without --validation: one document in so many is held out."""
    seed: int = 42
    """Seed of what is drawn or shuffled."""


@dataclass(frozen=True, kw_only=True)
class PrepareDocumentsFlags(CorpusFlags):
    """Turn documents into token shards for training. Repeat the command to continue after an interruption."""

    tokenizer: str
    """Folder of the tokenizer, or its name on the hub."""
    out: Path
    """Folder to write."""
    processes: int | None = None
    """Processes that encode; all processors when not given."""
    max_documents: int | None = None
    """Documents to take at most."""
    max_tokens: int | None = None
    """Training tokens after which to stop."""


def main(arguments: Sequence[str]) -> int:
    """Documents where --data or --dataset is given, else an experiment's text; --help shows both."""
    if any(word in ("-h", "--help") for word in arguments):
        for flags in (_with_settings(arguments), PrepareDocumentsFlags):
            try:
                parse(flags, ["--help"], "prepare")
            except SystemExit:
                print()
        return 0
    if any(word.split("=")[0] in ("--data", "--dataset") for word in arguments):
        return prepare_documents(parse(PrepareDocumentsFlags, arguments, "prepare"))
    if not arguments:
        raise ConfigError(
            "name an experiment, as in `bitnet prepare arithmetic --out FILE`, or documents with --data or "
            "--dataset"
        )
    return prepare_experiment(parse(_with_settings(arguments), arguments, "prepare"))


def _with_settings(arguments: Sequence[str]) -> type[PrepareFlags]:
    """PrepareFlags and the settings of the named experiment's data as `--data.NAME`, if one is named."""
    pairs = zip(["", *arguments], arguments, strict=False)
    words = [
        word for before, word in pairs if not before.startswith("--") or "=" in before
    ]  # without the values of flags
    word = next((word for word in words if word in experiment_names() or word.endswith(".py")), None)
    if word is None:
        return PrepareFlags
    data = find_variant(
        find_experiment(word), last_value(arguments, "--variant") or PrepareFlags.variant
    ).config.data
    return with_sections(PrepareFlags, data=data)


def prepare_experiment(flags: Any) -> int:
    """Write the lines under a temporary name, then rename: the file is whole or absent."""
    within("--count", flags.count, 1, MOST_LINES)
    experiment = find_experiment(flags.experiment)
    if experiment.training_text is None:
        raise ConfigError(f"{experiment.name} has no text to write; prepare works for arithmetic")
    if flags.out.exists():
        raise DataError(f"{flags.out} exists; delete it or choose another --out")
    config = dataclasses.replace(find_variant(experiment, flags.variant).config, data=flags.data)
    lines = experiment.training_text(config, flags.count)
    _write_whole(flags.out, lines)
    print(f"wrote {flags.count:,} lines to {flags.out}")
    return 0


def _write_whole(out: Path, lines: Iterable[str]) -> None:
    try:
        with replacing(out) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.writelines(lines)
    except OSError as error:
        raise DataError(f"{out} cannot be written ({error.strerror}); choose another --out") from None


def prepare_documents(flags: PrepareDocumentsFlags) -> int:
    """Make, finish or find the shards, and say what is in them."""
    from bitnet.corpus.corpus import open_corpus
    from bitnet.corpus.prepare import prepare
    from bitnet.text.pretrained import find_tokenizer

    corpus = open_corpus(
        flags.data,
        dataset=flags.dataset,
        split=flags.split,
        column=flags.column,
        validation=flags.validation,
        one_in=flags.held_out_one_in,
        max_documents=flags.max_documents,
        max_tokens=flags.max_tokens,
        seed=flags.seed,
    )
    tokenizer = find_tokenizer(flags.tokenizer)
    shards = prepare(corpus, tokenizer, flags.out, processes=flags.processes, report=progress_line())
    summary = summary_of(shards)
    print(_page(summary), file=sys.stderr if flags.json else sys.stdout)
    if flags.json:
        print(json.dumps(summary))
    return 0


def progress_line() -> Callable[[object], None]:
    """Shows str() of what it is given on standard error."""
    line = LiveLine()
    return lambda progress: line.show(lambda: str(progress))


def summary_of(shards: Shards) -> dict[str, Any]:
    """What was prepared, for people and programs."""
    train, held_out, counts = shards.train, shards.held_out, shards.manifest["counts"]
    return {
        "out": str(shards.folder),
        "name": shards.manifest["name"],
        "tokenizer": shards.manifest["tokenizer"],
        "documents": train.documents,
        "tokens": train.tokens,
        "text_bytes": train.text_bytes,
        "bytes_per_token": train.text_bytes / train.tokens,
        "held_out_documents": held_out.documents,
        "held_out_tokens": held_out.tokens,
        "held_out_text_bytes": held_out.text_bytes,
        **{key: counts[key] for key in ("equal_to_validation", "empty", "broken")},
        "first_broken": shards.manifest["first_broken"],
    }


def _page(summary: dict[str, Any]) -> str:
    def row(what: str, documents: int, tokens: int) -> str:
        return f"  {what:<12} {documents:>12,} documents  {tokens:>14,} tokens"

    lines = [
        f"{summary['out']}: {summary['name']}, ids of a vocabulary of "
        f"{summary['tokenizer']['tokenizer_vocab_size']:,}",
        f"{row('to train on', summary['documents'], summary['tokens'])}  {summary['bytes_per_token']:.2f} "
        "bytes each",
        row("held out", summary["held_out_documents"], summary["held_out_tokens"]),
    ]
    dropped = {
        "equal to a document of the validation file": summary["equal_to_validation"],
        "empty": summary["empty"],
        f"broken (first: {summary['first_broken']})": summary["broken"],
    }
    lines += [f"  {'left out':<12} {count:>12,} {what}" for what, count in dropped.items() if count]
    return "\n".join(lines)
