"""Documents streamed from a data set on the Hugging Face hub, shuffled with a seed, with a position to
continue from.

The data set's files are read in an order drawn with the seed. Documents are shuffled in blocks: read a block,
permute it by (seed, block number), give it out. So the position is the library's state at the start of a
block and how much of the block was given: nothing is repeated or lost after an interruption, and no buffer
has to be stored. (The library's own `shuffle` leaves its buffer out of its state, so that what was in it is
skipped; with a buffer of one, which loses nothing, it gave 3,000 to 6,500 documents a second where plain
reading gave 32,000.)

A folder of data files goes through the same calls. Not here: local files without that library (documents.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitnet.corpus.documents import Position
from bitnet.corpus.readers import Record, check_column, text_record
from bitnet.errors import BitnetError, ConfigError, DataError, NotFoundError
from bitnet.files import read_json, write_json

if TYPE_CHECKING:
    from datasets import IterableDataset

BLOCK_DOCUMENTS = 10_000  # about 50 MB of web pages
INSTEAD = "or give local files with --data"
REVISIONS = "revisions.json"


class HubDataset:
    """One split of a data set by name, at the revision that the hub has now."""

    size_bytes = None

    def __init__(
        self,
        name: str,
        *,
        split: str = "train",
        column: str = "text",
        seed: int = 42,
        block: int = BLOCK_DOCUMENTS,
        revision: str | None = None,
        cache: Path | None = None,
    ) -> None:
        """name: NAME or NAME:CONFIG, or a local folder of data files. Raises NotFoundError where it cannot be
        had.
        """
        self.name = name
        self._path, _, self._config = name.partition(":")
        self._split, self._column, self._seed, self._block = split, column, seed, block
        is_folder = Path(self._path).is_dir()
        self.revision = None if is_folder else revision or remembered_revision(self._path, cache)

    def identity(self) -> dict[str, Any]:
        """Name, revision, split, column and order; for a folder its files' names, sizes and times as well."""
        values: dict[str, Any] = {
            "dataset": self.name,
            "revision": self.revision,
            "split": self._split,
            "column": self._column,
        }
        if self.revision is None:
            stats = [
                (file.name, file.stat()) for file in sorted(Path(self._path).rglob("*")) if file.is_file()
            ]
            values["files"] = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
        return {**values, "seed": self._seed, "block": self._block}

    def open(self, position: Position | None = None) -> HubReading:
        """Begin to read, or continue from a position."""
        return HubReading(self, position)

    def load(self) -> IterableDataset:
        """The data set as the library streams it."""
        try:
            import datasets
        except ImportError:
            raise ConfigError(
                f"reading {self.name} needs the package datasets; install it with: pip install 'bitnet[text]'"
            ) from None
        datasets.logging.set_verbosity_error()
        try:
            return datasets.load_dataset(
                self._path, self._config or None, split=self._split, revision=self.revision, streaming=True
            )
        except Exception as error:  # the library raises many kinds, down to plain Exception
            raise NotFoundError(
                f"the data set {self.name} cannot be opened ({_one_line(error)}); check its name, "
                "NAME:CONFIG and --split"
            ) from error

    def file_order(self, count: int) -> list[int]:
        """The order in which the data set's files are read, a function of the seed."""
        return _permutation(count, self._seed)

    def block_of(self, rows: Iterator[dict[str, Any]], number: int) -> list[Any]:
        """The column's values of the next block, permuted; empty at the end."""
        try:
            block = list(islice(rows, self._block))
        except BitnetError:
            raise
        except Exception as error:  # network errors come as many kinds
            raise DataError(
                f"reading {self.name} failed in block {number} ({_one_line(error)}); repeat the command to "
                f"continue, {INSTEAD}"
            ) from error
        if block and number == 0:
            check_column(self._column, block[0], self.name)
        return [block[index].get(self._column) for index in _permutation(len(block), self._seed, number)]


class HubReading:
    """A data set while it is read."""

    def __init__(self, source: HubDataset, position: Position | None) -> None:
        self._source = source
        self._start = position or {"file": 0, "state": None, "block": 0}
        self._given: int = self._start.get("given", 0)

    def __iter__(self) -> Iterator[Record]:
        """The documents; the block of the position is read again, and what was given of it is skipped."""
        rows = self._rows()
        while block := self._source.block_of(rows, self._start["block"]):
            after = {"file": self._file, "state": self._part.state_dict(), "block": self._start["block"] + 1}
            for value in block[self._given :]:
                self._given += 1
                yield text_record(value)
            self._start, self._given = after, 0

    def _rows(self) -> Iterator[dict[str, Any]]:
        """The rows of one file after another."""
        dataset, state = self._source.load(), self._start["state"]
        order = self._source.file_order(dataset.num_shards)
        for index in range(self._start["file"], len(order)):
            self._file, self._part = index, dataset.shard(len(order), order[index])
            if state is not None:
                self._part.load_state_dict(state)
                state = None
            yield from self._part

    def position(self) -> Position:
        """Where the block began, by file and the library's state in it, the block's number, and how much of
        it was given.
        """
        return {**self._start, "given": self._given}

    def place(self) -> str:
        """Block and number of the document."""
        return f"{self._source.name}, block {self._start['block']}, document {self._given}"

    def fraction(self) -> None:
        """Unknown: a stream does not say how long it is."""


def remembered_revision(name: str, cache: Path | None) -> str:
    """The newest commit. Without a network it is that of last time, so that prepared data can be used."""
    path = None if cache is None else cache / REVISIONS
    known: dict[str, str] = (
        read_json(path, fix="delete it; it is made again") if path is not None and path.exists() else {}
    )
    try:
        revision = newest_revision(name)
    except NotFoundError:
        if name in known:
            return known[name]
        raise
    if path is not None and known.get(name) != revision:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {**known, name: revision})
    return revision


def newest_revision(name: str) -> str:
    """The commit of a data set on the hub. Raises NotFoundError at once where there is no network or no such
    name.
    """
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
    except ImportError:
        raise ConfigError(
            f"{name} is a name on the hub, which needs more packages; install them with: pip install "
            "'bitnet[text]'"
        ) from None
    try:
        revision = HfApi().dataset_info(name, timeout=20).sha
    except GatedRepoError:
        raise NotFoundError(
            f"{name} is gated: accept its terms at huggingface.co/datasets/{name}, then run `hf auth login`; "
            f"{INSTEAD}"
        ) from None
    except RepositoryNotFoundError:
        raise NotFoundError(
            f"the hub has no data set {name!r}, or not for you (private: `hf auth login`); check the name, "
            f"{INSTEAD}"
        ) from None
    except Exception as error:  # the HTTP library's own kinds, which differ between its versions
        raise NotFoundError(
            f"the hub cannot be reached for {name} ({_one_line(error)}); check the network, {INSTEAD}"
        ) from error
    assert revision is not None
    return revision


def _permutation(count: int, *key: int) -> list[int]:
    import numpy as np

    order: list[int] = np.random.default_rng(key).permutation(count).tolist()
    return order


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
