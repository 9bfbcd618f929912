"""Small corpora for the tests of preparing and reading shards."""

from __future__ import annotations

import gzip
import json
import lzma
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from bitnet.text.bpe import train_bpe
from bitnet.text.subword import SubwordTokenizer

WORDS = tuple(
    """
    the a small big red blue cat dog bird ran sat sang said under over and happy moon
""".split()
)


def zstd(raw: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(raw)
    return bytes(sink.getvalue())


PACKERS: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstd}


def story(number: int) -> str:
    """A different story for each number, 60 to 400 bytes."""
    generator = random.Random(number)
    sentences = (
        " ".join(generator.choices(WORDS, k=generator.randint(4, 12))).capitalize()
        for _ in range(generator.randint(2, 6))
    )
    return f"Story {number}. " + ". ".join(sentences) + "."


def stories(count: int, first: int = 0) -> list[str]:
    return [story(number) for number in range(first, first + count)]


def write_txt(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(f"{text}\n<|endoftext|>\n" for text in texts), encoding="utf-8")
    return path


def write_jsonl(path: Path, texts: list[str], column: str = "text") -> Path:
    path.write_text(
        "".join(json.dumps({"id": index, column: text}) + "\n" for index, text in enumerate(texts)),
        encoding="utf-8",
    )
    return path


def small_tokenizer() -> SubwordTokenizer:
    return train_bpe(stories(200), 320)
