"""Records out of one open file, by its kind.

    .txt        documents end at a line `<|endoftext|>`; a file without such a line is one document
    .jsonl      one object a line, its text in one column: a string, or a list of strings (joined by
                line breaks)
    .parquet    the same from a column

The first two may be compressed (.gz, .xz, .zst). A file is read as a stream: memory is bounded by its longest
document, and that by LONGEST_DOCUMENT, also where 4 MB decompress to 6 GB. A record that cannot be used is
handed on with its problem, so that it is counted.
Not here: several files, and going on from a position (documents.py).
"""

from __future__ import annotations

import gzip
import importlib
import io
import json
import lzma
import zlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO, Any, NamedTuple

from bitnet.errors import BitnetError, ConfigError, DataError, NotFoundError
from bitnet.files import lines_of

DELIMITER = b"<|endoftext|>"
EMPTY = "empty"
COMPRESSIONS = (".gz", ".xz", ".zst")
KINDS = (
    ".txt",
    ".jsonl",
    *(kind + packed for kind in (".txt", ".jsonl") for packed in COMPRESSIONS),
    ".parquet",
)
BUFFER_BYTES = 1 << 20
LONGEST_DOCUMENT = 256 << 20
"""Bytes of a document that is read: fifty times the Bible. A longer one is a dump without delimiters, or a
compressed bomb."""
LARGEST_ROW_GROUP = 2 << 30  # bytes of one column of a parquet file that are decoded together
LONGEST_LINE = 32 << 20
"""Bytes of a line of JSON that is parsed: lists and objects that are empty take thirty times the memory of
their text."""
ROWS_AT_ONCE = 256
LARGEST_BATCH = 256 << 20
"""Bytes that rows of a parquet file may take together: each may be a repetition of the whole column as it is
stored."""
LINE_TOO_LONG = f"a line longer than the {LONGEST_LINE:,} bytes that are parsed; split the document"
TOO_LONG = (
    f"longer than the {LONGEST_DOCUMENT:,} bytes that a document may have; put a line {DELIMITER.decode()} "
    "between documents"
)


class Record(NamedTuple):
    """A document, or what is wrong with it: EMPTY, or why it cannot be read."""

    text: str | None
    problem: str | None = None


def read_file(path: Path, raw: IO[bytes], column: str) -> Iterator[Record]:
    """The records of one open file. An empty file is one empty record."""
    if path.stat().st_size == 0:
        yield Record(None, EMPTY)
        return
    try:
        if path.suffix == ".parquet":
            yield from _parquet_records(path, raw, column)
            return
        kind = path.with_suffix("").suffix if path.suffix in COMPRESSIONS else path.suffix
        with _unpacked(raw, path.suffix) as lines:
            yield from _text_records(lines) if kind == ".txt" else _json_records(lines, path, column)
    except BitnetError:
        raise
    except MemoryError:
        raise DataError(f"{path} asks for more memory than there is; leave it out") from None
    except (EOFError, OSError, lzma.LZMAError, zlib.error, ValueError) as error:
        raise DataError(
            f"{path} is cut short or damaged ({error}); fetch it again, or leave it out"
        ) from error


def _unpacked(raw: IO[bytes], suffix: str) -> AbstractContextManager[Any]:
    """A file decompressed by its last suffix."""
    if suffix == ".gz":
        return gzip.GzipFile(fileobj=raw)
    if suffix == ".xz":
        return lzma.LZMAFile(raw)
    if suffix == ".zst":
        return io.BufferedReader(
            _pyarrow("pyarrow", "a .zst file").CompressedInputStream(raw, "zstd"), BUFFER_BYTES
        )
    return nullcontext(raw)


def _pyarrow(module: str, what: str) -> Any:
    """Arrow's reader. For zstd too: the package zstandard takes a file that was cut short for a whole one."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ConfigError(
            f"reading {what} needs pyarrow; install it with: pip install 'bitnet[text]'"
        ) from None


def _text_records(file: IO[bytes]) -> Iterator[Record]:
    document = bytearray()
    ended = too_long = False
    for line in lines_of(file, LONGEST_DOCUMENT):
        if line is not None and DELIMITER in line and line.strip() == DELIMITER:
            yield Record(None, TOO_LONG) if too_long else _text_record(bytes(document))
            document, ended, too_long = bytearray(), True, False
        elif line is None or len(document) + len(line) > LONGEST_DOCUMENT:
            document, too_long = bytearray(), True  # what follows is skipped up to the next delimiter
        elif not too_long:
            document += line
    if too_long:
        yield Record(None, TOO_LONG)
    elif document.strip() or not ended:
        yield _text_record(bytes(document))


def _text_record(raw: bytes) -> Record:
    raw = raw.removeprefix(b"\xef\xbb\xbf").strip(b"\r\n")
    if b"\x00" in raw:
        return Record(None, "binary data, not text")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        return Record(None, f"not UTF-8 ({error.reason} at byte {error.start})")
    return _checked(text)


def _json_records(file: IO[bytes], path: Path, column: str) -> Iterator[Record]:
    known = False
    for line in lines_of(file, LONGEST_LINE):
        if line is None:
            yield Record(None, LINE_TOO_LONG)
            continue
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield Record(None, f"not JSON ({error})")
            continue
        if not isinstance(values, dict):
            yield Record(None, f"a {type(values).__name__}, not an object")
            continue
        if not known:
            check_column(column, values, str(path))
            known = True
        yield text_record(values.get(column))


def _parquet_records(path: Path, raw: IO[bytes], column: str) -> Iterator[Record]:
    """Rows of a column. Arrow repeats what a file stores once: 524 bytes may hold 256 texts of 8 MB, or a
    list of a million of them.
    """
    parquet = _pyarrow("pyarrow.parquet", "a .parquet file")
    file = parquet.ParquetFile(raw, buffer_size=BUFFER_BYTES)
    check_column(column, file.schema_arrow.names, str(path))
    kind = file.schema_arrow.field(column).type
    parts = [file.schema.column(number).path for number in range(len(file.schema))]
    inner = [part for part in parts if part.startswith(f"{column}.")]
    if inner:  # the texts in a list are left as they are stored until their length is known
        file = parquet.ParquetFile(raw, buffer_size=BUFFER_BYTES, read_dictionary=inner)

    for group in range(file.metadata.num_row_groups):
        size = _checked_size(path, file.metadata, column, group)
        rows = min(max(LARGEST_BATCH // max(size, 1), 1), ROWS_AT_ONCE)
        if inner and not _is_list_of_texts(kind):
            not_text = Record(None, f"{kind} in the column, not text")
            yield from (not_text for _ in range(file.metadata.row_group(group).num_rows))
            continue
        for batch in file.iter_batches(batch_size=rows, row_groups=[group], columns=[column]):
            for value in batch.column(0):
                too_long = inner and _length(value) > LONGEST_DOCUMENT
                yield Record(None, TOO_LONG) if too_long else text_record(value.as_py())


def _checked_size(path: Path, metadata: Any, column: str, group: int) -> int:
    """Bytes of a column in a group of rows, as they are stored. Raises DataError for too many to decode: that
    is done whole.
    """
    rows = metadata.row_group(group)
    chunks = (rows.column(number) for number in range(rows.num_columns))
    size: int = sum(
        one.total_uncompressed_size for one in chunks if one.path_in_schema.split(".")[0] == column
    )
    if not 0 <= size <= LARGEST_ROW_GROUP:
        raise DataError(
            f"{path} has {size:,} bytes of {column} in its group of rows {group}, above the "
            f"{LARGEST_ROW_GROUP:,} that are read; write it again with smaller groups"
        )
    return size


def _is_list_of_texts(kind: Any) -> bool:
    """Whether a column's values are lists whose entries are texts."""
    types = _pyarrow("pyarrow", "a .parquet file").types
    if not (types.is_list(kind) or types.is_large_list(kind)):
        return False
    return bool(types.is_string(kind.value_type) or types.is_large_string(kind.value_type))


def _length(value: Any) -> int:
    """Bytes of the texts in a list, counted without writing out those that are stored once and repeated."""
    if value.values is None:
        return 0
    compute = _pyarrow("pyarrow.compute", "a .parquet file")
    lengths = compute.binary_length(value.values.dictionary).take(value.values.indices)
    return compute.sum(lengths).as_py() or 0


def check_column(column: str, names: Iterable[str], where: str) -> None:
    """Raise NotFoundError, with the columns there are, unless `column` is one of them."""
    there = sorted(names)
    if column not in there:
        raise NotFoundError(
            f"{where} has no column {column!r}; it has: {', '.join(there)}. Choose one with --column"
        )


def text_record(value: object) -> Record:
    """What stands in a column, as a document."""
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        value = "\n".join(value)
    if value is None:
        return Record(None, EMPTY)
    if isinstance(value, str):
        return _checked(value)
    return Record(None, f"a {type(value).__name__} in the column, not text")


def _checked(text: str) -> Record:
    if not text or text.isspace():
        return Record(None, EMPTY)
    try:
        text.encode()
    except UnicodeEncodeError:
        return Record(None, "half of a surrogate pair, which UTF-8 cannot represent")
    return Record(text)
