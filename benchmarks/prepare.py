"""Preparing and reading real text: MB/s, the share of a step that reading takes, and memory against the
corpus's size.

    python benchmarks/prepare.py --text PATH... [--megabytes 300]

PATH: files or folders as `bitnet prepare --data` takes them, with at least that many megabytes in the column
`text`. Speed is that of whole calls on all processors, with the start of the processes. For memory the text
is cut into documents of 4 kB: 4 MB, a quarter of all, and all (4 MB do not fill the batches in flight, the
others do). The anonymous memory (RssAnon of /proc) of a process that reads batches is compared, and the
highest of one that prepares. The time of a training step is that of benchmarks/train_speed.py.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SMALL_MB = 4.0
DOCUMENT_CHARACTERS = 4000
BATCH_ROWS, SEQ_LEN = 16, 256  # the TinyStories shape
STEP = ("tinystories", "ternary int8")


def cut(paths: list[str], out: Path, megabytes: float) -> Path:
    """Write this many megabytes of the text as JSON lines of short documents."""
    from bitnet.corpus.documents import LocalFiles

    size = 0
    with out.open("w", encoding="utf-8") as file:
        for record in LocalFiles(paths).open():
            text = record.text or ""
            for start in range(0, len(text), DOCUMENT_CHARACTERS):
                part = text[start : start + DOCUMENT_CHARACTERS]
                size += len(part.encode())
                if size > megabytes * 1e6:
                    return out
                file.write(json.dumps({"text": part}, ensure_ascii=False) + "\n")
    return out


def anonymous_mb(process: int | str = "self") -> float:
    """RssAnon of a process; 0 once it is gone."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return next((int(line.split()[1]) / 1e3 for line in lines if line.startswith("RssAnon:")), 0.0)


def in_a_process(words: list[str]) -> dict[str, Any]:
    """The JSON that this file prints when it is called with these words."""
    done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def prepare_once(data: str, tokenizer: str, out: str, processes: int | None) -> dict[str, Any]:
    """One call of prepare: seconds, sizes, and the highest anonymous memory of this process and a worker."""
    from bitnet.corpus.corpus import open_corpus
    from bitnet.corpus.prepare import prepare
    from bitnet.text.tokenizer import load_tokenizer

    peaks = {"main_mb": 0.0, "worker_mb": 0.0}
    done = threading.Event()

    def watch() -> None:
        children = Path(f"/proc/self/task/{os.getpid()}/children")
        while not done.wait(0.02):
            peaks["main_mb"] = max(peaks["main_mb"], anonymous_mb())
            peaks["worker_mb"] = max(
                [peaks["worker_mb"], *(anonymous_mb(child) for child in children.read_text().split())]
            )

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    shards = prepare(open_corpus([data]), load_tokenizer(Path(tokenizer)), Path(out), processes=processes)
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    size = shards.train.text_bytes + shards.held_out.text_bytes
    return {
        "mb": size / 1e6,
        "seconds": seconds,
        "mb_per_s": size / 1e6 / seconds,
        "tokens": shards.train.tokens,
        **peaks,
    }


def read_batches(folder: str, batches: int = 400) -> dict[str, Any]:
    """Time of a batch, of the first one at a far step, and the anonymous memory after all of them."""
    import numpy as np

    from bitnet.data.shards import Shards
    from bitnet.data.stream import row_numbers
    from bitnet.data.windows import WindowRows

    started = time.perf_counter()
    source = WindowRows(Shards.open(Path(folder)), seq_len=SEQ_LEN, seed=42)
    source.rows(np.arange(BATCH_ROWS) + 10**12)
    seek_s = time.perf_counter() - started
    times = []
    for step in range(1, batches + 1):
        started = time.perf_counter()
        source.rows(row_numbers(step, 0, batch_size=BATCH_ROWS, accumulation=1, rank=0, world_size=1))
        times.append(time.perf_counter() - started)
    return {
        "batch_ms": statistics.median(times) * 1e3,
        "slowest_ms": max(times) * 1e3,
        "seek_s": seek_s,
        "anonymous_mb": anonymous_mb(),
    }


def rows_of(args: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """All measurements."""
    from bitnet.corpus.corpus import open_corpus
    from bitnet.text.bpe import train_bpe

    wanted = {"small": SMALL_MB, "middle": args.megabytes / 4, "large": args.megabytes}
    sizes = {name: cut(args.text, folder / f"{name}.jsonl", megabytes) for name, megabytes in wanted.items()}
    for vocab_size in (2048, 32_000):
        started = time.perf_counter()
        tokenizer = train_bpe(open_corpus([sizes["large"]]).sampled_texts(args.documents, 42), vocab_size)
        tokenizer.save(folder / f"{vocab_size}")
        yield {
            "what": "tokenizer",
            "vocab_size": vocab_size,
            "documents": args.documents,
            "seconds": time.perf_counter() - started,
        }
        for name, data in sizes.items():
            out = folder / f"{name}-{vocab_size}"
            words = ["--prepare", str(data), str(folder / f"{vocab_size}"), str(out), str(os.cpu_count())]
            yield {
                "what": "prepare",
                "corpus": name,
                "vocab_size": vocab_size,
                "processes": os.cpu_count(),
                **in_a_process(words),
            }
            yield {
                "what": "read",
                "corpus": name,
                "vocab_size": vocab_size,
                **in_a_process(["--read", str(out)]),
            }


def step_ms() -> float:
    """The recorded time of an update of the TinyStories shape."""
    rows = json.loads((Path(__file__).parent / "results" / "train_speed_cpu.json").read_text())["rows"]
    return next(float(row["update_ms"]) for row in rows if (row["shape"], row["way"]) == STEP)


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Shares and ratios that the claims are about."""

    def ratio(what: str, key: str, base: str = "small") -> float:
        pairs = {(row["vocab_size"], row["corpus"]): row[key] for row in rows if row["what"] == what}
        return max(float(pairs[v, "large"] / pairs[v, base]) for v in (2048, 32_000))

    slowest = max(row["batch_ms"] for row in rows if row["what"] == "read")
    return {
        "what": "summary",
        "reading_share_of_a_step": slowest / step_ms(),
        "reading_memory_large_to_small": ratio("read", "anonymous_mb"),
        "preparing_memory_main_large_to_small": ratio("prepare", "main_mb"),
        "preparing_memory_worker_large_to_small": ratio("prepare", "worker_mb"),
        "preparing_memory_main_large_to_middle": ratio("prepare", "main_mb", "middle"),
        "preparing_memory_worker_large_to_middle": ratio("prepare", "worker_mb", "middle"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", nargs="+", default=[])
    parser.add_argument("--megabytes", type=float, default=300.0)
    parser.add_argument(
        "--documents", type=int, default=20_000, help="documents of 4 kB that the tokenizers are trained on"
    )
    parser.add_argument(
        "--prepare", nargs=4, metavar=("DATA", "TOKENIZER", "OUT", "PROCESSES"), help=argparse.SUPPRESS
    )
    parser.add_argument("--read", metavar="SHARDS", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.prepare:
        data, tokenizer, out, processes = args.prepare
        print(json.dumps(prepare_once(data, tokenizer, out, int(processes))))
        return
    if args.read:
        print(json.dumps(read_batches(args.read)))
        return
    from hardware import where, write_results

    if not args.text:
        parser.error("name real text with --text")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for row in rows_of(args, Path(folder)):
            rows.append(row)
            print(
                {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()},
                flush=True,
            )
    rows.append(summary(rows))
    print(where())
    for key, value in rows[-1].items():
        print(f"  {key:<42}{value}")
    print(f"wrote {write_results('prepare', rows)}")


if __name__ == "__main__":
    main()
