"""Weights, tokenizers and data made by an enemy, group by group, for hostile_files.py."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from reliability.hostile_edits import LOADERS, MIB, given, reseal, written
from reliability.hostile_files import Case

Json = dict[str, Any]
BOMB = 300 * MIB  # decompressed; a document may have 256 MiB
ON_TEXT = (
    ("evaluate", "tiny", "--data", "given"),
    ("tokenizer", "train", "--data", "given", "--vocab-size", "300", "--out", "made"),
    ("prepare", "--data", "given", "--tokenizer", "tokenizer", "--out", "made", "--processes", "1"),
)


def cases() -> list[Case]:
    """All of them."""
    groups = (weights, character_tokenizers, tokenizers, data_files, conversations)
    return [case for group in groups for case in group()]


def safetensors(header: bytes | Json, body: bytes = b"", length: int | None = None) -> bytes:
    """A file of this format: the header's length, the header, the numbers."""
    raw = json.dumps(header).encode() if isinstance(header, dict) else header
    return struct.pack("<Q", len(raw) if length is None else length) + raw + body


def weights() -> Iterator[Case]:
    """Files of weights whose manifest fits and whose content does not."""
    one = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    contents: dict[str, bytes] = {
        "no byte": b"",
        "half a length": b"\x01\x02",
        "length of 2^63": safetensors({}, length=2**63),
        "length of 2^32": safetensors({}, length=2**32),
        "header of nothing": safetensors(b""),
        "header of spaces": safetensors(b" " * 1000),
        "header nested": safetensors(b"[" * 100_000),
        "header no JSON": safetensors(b"{'a': 1}"),
        "shape of 2^60": safetensors({"a": {**one, "shape": [2**60]}}, b"\0" * 16),
        "shape that overflows": safetensors({"a": {**one, "shape": [2**32, 2**32]}}, b"\0" * 16),
        "offsets that overlap": safetensors({"a": one, "b": {**one, "data_offsets": [8, 24]}}, b"\0" * 24),
        "offsets beyond the end": safetensors({"a": {**one, "data_offsets": [0, 2**50]}}, b"\0" * 16),
        "offsets backwards": safetensors({"a": {**one, "data_offsets": [16, 0]}}, b"\0" * 16),
        "unknown kind of number": safetensors({"a": {**one, "dtype": "F7"}}, b"\0" * 16),
        "whole numbers": safetensors({"final_norm.weight": {**one, "dtype": "I32"}}, b"\0" * 16),
        "not a number": safetensors({"final_norm.weight": one}, struct.pack("<4f", *[float("nan")] * 4)),
        "another model": safetensors({"a": one}, b"\0" * 16),
        "a million names": safetensors(
            {str(n): {**one, "shape": [0], "data_offsets": [0, 0]} for n in range(100_000)}
        ),
        "metadata of 20 MB": safetensors({"__metadata__": {"a": "a" * 20 * MIB}}),
    }

    def everywhere(name: str, content: bytes) -> Callable[[Path], None]:
        def plant(place: Path) -> None:
            for folder in (place / "runs" / "tiny" / "checkpoints").iterdir():
                (folder / name).write_bytes(content)
            reseal(place)

        return plant

    yield Case("model.safetensors", "8.8 TB on paper", paper, LOADERS, refused=True)
    resume = ("train", "arithmetic", "--run-id", "tiny", "--resume", "must")
    for what, content in contents.items():
        yield Case("model.safetensors", what, everywhere("model.safetensors", content), LOADERS, refused=True)
        yield Case(
            "optimizer.safetensors", what, everywhere("optimizer.safetensors", content), (*LOADERS, resume)
        )
        yield Case(
            "frozen_set.safetensors",
            what,
            written("eval/frozen_set.safetensors", content),
            (("diagnose", "tiny"), ("evaluate", "tiny")),
        )


def character_tokenizers() -> Iterator[Case]:
    """Tokenizers of characters with absurd alphabets, in the run."""
    characters: dict[str, Any] = {
        "vocabulary of 10^12": {"alphabet": "ab", "vocab_size": 10**12},
        "negative": {"alphabet": "ab", "vocab_size": -5},
        "alphabet of a list": {"alphabet": ["a", "b"], "vocab_size": 64},
        "repeated": {"alphabet": "aa", "vocab_size": 64},
        "half surrogates": {"alphabet": "\ud800a", "vocab_size": 64},
        "every character": {"alphabet": "".join(map(chr, range(9, 50_000))), "vocab_size": 64},
        "without an alphabet": {"vocab_size": 64},
        "escapes": {"alphabet": "\x1b[2J0134567", "vocab_size": 32},
    }
    for what, values in characters.items():
        content = json.dumps({"kind": "characters", **values}).encode()
        plant = written("tokenizer/characters.json", content)
        yield Case("characters.json", what, plant, LOADERS, refused=what != "escapes")


def tokenizers() -> Iterator[Case]:
    """Tokenizers with absurd ids and parts, given by name."""
    base: Json = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": {"</s>": 0, "a": 1, "b": 2}, "merges": []},
    }
    grow = {
        "type": "Sequence",
        "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}] * 12,
    }
    changes: dict[str, Json] = {
        "id of 10^12": {"model": {"type": "BPE", "vocab": {"</s>": 0, "a": 10**12}, "merges": []}},
        "id of 2^32 - 1": {"model": {"type": "BPE", "vocab": {"</s>": 0, "a": 2**32 - 1}, "merges": []}},
        "negative id": {"model": {"type": "BPE", "vocab": {"</s>": 0, "a": -1}, "merges": []}},
        "one id twice": {"model": {"type": "BPE", "vocab": {"</s>": 0, "a": 0}, "merges": []}},
        "merges of nothing": {"model": {"type": "BPE", "vocab": {"</s>": 0}, "merges": [["a", "b"]]}},
        "panic": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
        "steps of length 0": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
        "growth": {"normalizer": grow},
        "unknown model": {"model": {"type": "Evil"}},
        "no model": {"model": None},
        "template": {"chat_template": "{{ ''.__class__.__mro__[1].__subclasses__() }}"},
    }
    inspect = (("tokenizer", "inspect", "given", "--text", "a cat"),)
    for what, change in changes.items():
        content = json.dumps({**base, **change}).encode()
        plant = given("tokenizer.json", content)
        yield Case("tokenizer.json", what, plant, inspect, refused=what != "template")


def data_files() -> Iterator[Case]:
    """Documents: bombs, cuts, nonsense."""

    def refused(what: str, plant: Callable[[Path], None]) -> Case:
        return Case("data", what, plant, ON_TEXT, refused=True)

    letters = b"a" * BOMB
    packed = {".gz": gzip.compress(letters, 1), ".xz": lzma.compress(letters, preset=0)}
    for ending, bomb in packed.items():
        for kind in (".txt", ".jsonl"):
            yield refused(f"a bomb{kind}{ending}", given(f"a{kind}{ending}", bomb))
        yield refused(f"half a bomb{ending}", given(f"a.txt{ending}", bomb[: len(bomb) // 2]))
    for ending in (".gz", ".xz", ".zst"):
        yield refused(f"no {ending}", given(f"a.txt{ending}", b"PK\x03\x04 this is not packed"))

    rows = {
        "nested": b'{"text": ' + b"[" * 100_000 + b"}\n",
        "digits": b'{"text": ' + b"1" * 5000 + b"}\n",
        "no text": b'{"text": 7}\n{"text": [1]}\n',
        "zeros": b"\0" * MIB,
        "half surrogate": b'{"text": "\\ud800"}\n',
        "no object": b"[]\n" * 100,
    }
    for what, content in rows.items():
        yield refused(f"jsonl, {what}", given("a.jsonl", content))
    tables = {
        "magic only": b"PAR1PAR1",
        "huge footer": b"PAR1" + b"\xff" * 64 + b"\xff\xff\xff\x7fPAR1",
        "zeros": b"\0" * 4096,
    }
    for what, content in tables.items():
        yield refused(f"parquet, {what}", given("a.parquet", content))

    lists = b'{"text": "x", "more": [' + b"[]," * (20 * MIB) + b"[]]}\n"
    yield refused("a line of empty lists", given("a.jsonl.gz", gzip.compress(lists, 1)))
    yield Case("data", "parquet, one text in 500 rows", repeated(500, as_list=False), ON_TEXT[:1])
    yield refused("parquet, one text 1,000 times in a list", repeated(1000, as_list=True))
    yield refused("a pipe", pipe)
    yield refused("a loop of folders", loop)


def repeated(times: int, *, as_list: bool) -> Callable[[Path], None]:
    """A parquet file that stores a text of a MiB once and means it many times: some 500 bytes."""

    def plant(place: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        texts = pa.DictionaryArray.from_arrays(
            pa.array([0] * times, pa.int32()), pa.array(["a dog " * (MIB // 6)])
        )
        column = pa.ListArray.from_arrays(pa.array([0, times], pa.int32()), texts) if as_list else texts
        (place / "given").mkdir()
        pq.write_table(
            pa.table({"text": column}), place / "given" / "a.parquet", compression="zstd", store_schema=False
        )

    return plant


def paper(place: Path) -> None:
    """Weights of 8.8 TB that take no room, and a manifest that agrees on their size."""
    for folder in (place / "runs" / "tiny" / "checkpoints").iterdir():
        with (folder / "model.safetensors").open("r+b") as file:
            file.truncate(1 << 43)
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["files"]["model.safetensors"]["bytes"] = 1 << 43
        (folder / "manifest.json").write_text(json.dumps(manifest))


def pipe(place: Path) -> None:
    """A named pipe in a folder of data."""
    (place / "given").mkdir()
    os.mkfifo(place / "given" / "a.txt")


def loop(place: Path) -> None:
    """A folder of data that holds a link to itself."""
    (place / "given").mkdir()
    (place / "given" / "in").symlink_to(place / "given")


def conversations() -> Iterator[Case]:
    """Fine-tuning data and prompts from elsewhere."""
    rows = {
        "nested": b'{"prompt": ' + b"[" * 50_000 + b"}\n",
        "40 MB line": b'{"prompt": "' + b"a" * 40 * MIB + b'", "answer": "b"}\n',
        "wrong kinds": b'{"prompt": 1, "answer": []}\n' * 20,
        "nothing": b"",
        "escapes": b'{"prompt": "\\u001b[2J", "answer": 7}\n',
        "zeros": b"\0" * MIB,
    }

    train = (
        "train",
        "bitnut_sft",
        "--variant",
        "quick",
        "--from",
        "words",
        "--data",
        "given",
        "--num-steps",
        "1",
        "--device",
        "cpu",
    )
    answers = ("voice", "answers", "--teacher", "rules", "--prompts", "given", "--out", "made")
    for what, content in rows.items():
        yield Case(
            "conversations", f"answers.jsonl, {what}", given("answers.jsonl", content), (train,), refused=True
        )
        yield Case(
            "conversations",
            f"prompts.jsonl, {what}",
            given("prompts.jsonl", content),
            (answers,),
            refused=True,
        )
