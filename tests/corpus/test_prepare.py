"""Preparing: the shards are the documents, whatever the number of processes and however often it was
killed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bitnet.corpus.corpus import Corpus, open_corpus
from bitnet.corpus.holdout import content_hash
from bitnet.corpus.preparation import PROGRESS, Progress
from bitnet.corpus.prepare import prepare, prepare_cached
from bitnet.data.shards import MANIFEST, Shards
from bitnet.errors import ConfigError, DataError
from bitnet.text.characters import CharacterTokenizer
from corpora import small_tokenizer, stories, write_jsonl, write_txt

TOKENIZER = small_tokenizer()


def texts_of(shards: Shards) -> tuple[list[str], list[str]]:
    """Documents to train on, and those held out."""
    train, held_out = (
        [TOKENIZER.decode(ids.tolist()) for ids in split.each_document()]
        for split in (shards.train, shards.held_out)
    )
    return train, held_out


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".bin", ".idx", ".json")
    }


def corpus_of(folder: Path, count: int = 600, **words: object) -> Corpus:
    write_txt(folder / "a.txt", stories(count // 2))
    write_jsonl(folder / "b.jsonl", stories(count - count // 2, first=count // 2))
    return open_corpus([folder / "a.txt", folder / "b.jsonl"], **words)  # type: ignore[arg-type]


def test_shards_hold_every_document_once_in_order_and_held_out_ones_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitnet.corpus.encode.BATCH_BYTES", 4000)
    shards = prepare(corpus_of(tmp_path), TOKENIZER, tmp_path / "out", shard_tokens=5000)
    train, held_out = texts_of(shards)
    rule = corpus_of(tmp_path).hold_out
    assert held_out == [text for text in stories(600) if rule.role(content_hash(text))]
    assert train == [text for text in stories(600) if text not in held_out]
    assert held_out
    assert shards.train.text_bytes == sum(len(text.encode()) for text in train)
    assert shards.train.documents == len(train)
    assert len(shards.manifest["splits"]["train"]) > 3
    assert shards.train.read(0, 10**9).tolist() == [
        id_ for text in train for id_ in [*TOKENIZER.encode(text), TOKENIZER.eos_id]
    ]
    assert (tmp_path / "out" / "tokenizer" / "tokenizer.json").is_file()
    assert not (tmp_path / "out" / PROGRESS).exists()


def test_processes_change_nothing(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path)
    prepare(corpus, TOKENIZER, tmp_path / "one", processes=1)
    prepare(corpus, TOKENIZER, tmp_path / "two", processes=2)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


SCRIPT = """
import os, sys, time
from pathlib import Path
import bitnet.corpus.encode as encode
encode.BATCH_BYTES = 4000  # many batches, so that a kill falls between and inside them
from bitnet.corpus.corpus import open_corpus
from bitnet.corpus.prepare import prepare
from bitnet.text.tokenizer import load_tokenizer

def report(progress):
    print(progress.documents, flush=True)
    time.sleep(0.002)

if __name__ == "__main__":
    data, tokenizer, out, processes = sys.argv[1:]
    corpus = open_corpus([data], validation=[data + "/../validation.txt"] if "validation" in out else ())
    sizes = {"shard_tokens": 9000, "commit_bytes": 10_000}
    prepare(corpus, load_tokenizer(Path(tokenizer)), Path(out), processes=int(processes),
            report=report, **sizes)
"""


def start(tmp_path: Path, out: str, processes: int) -> subprocess.Popen[str]:
    words = [
        sys.executable,
        tmp_path / "script.py",
        tmp_path / "data",
        tmp_path / "tokenizer",
        tmp_path / out,
        str(processes),
    ]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize(("out", "processes"), [("killed", 1), ("killed_with_validation", 2)])
def test_killed_again_and_again_it_ends_with_the_same_bytes(tmp_path: Path, out: str, processes: int) -> None:
    """SIGKILL at random documents, until a run gets through: no document is missing or there twice."""
    (tmp_path / "data").mkdir()
    corpus_of(tmp_path / "data", 900)
    write_txt(tmp_path / "validation.txt", stories(40, first=880))  # 20 of them are in the data
    TOKENIZER.save(tmp_path / "tokenizer")
    (tmp_path / "script.py").write_text(SCRIPT)
    whole = start(tmp_path, f"whole_{out}", 1)
    assert len(whole.communicate()[0].split()) > 20
    generator, kills, code = random.Random(5), 0, None
    while code != 0:
        running = start(tmp_path, out, processes)
        assert running.stdout is not None
        for _ in range(generator.randint(3, 14)):
            running.stdout.readline()
        time.sleep(generator.random() * 0.02)
        if kills < 4:
            running.kill()
            kills += 1
        code = running.wait()
        running.stdout.close()
    assert kills == 4
    assert files_of(tmp_path / out) == files_of(tmp_path / f"whole_{out}")
    train, held_out = texts_of(Shards.open(tmp_path / out))
    assert len(train) == len(set(train))
    assert (
        (len(train), len(held_out)) == (880, 40) if "validation" in out else len(train) + len(held_out) == 900
    )


def test_workers_end_with_a_killed_main_process(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    corpus_of(tmp_path / "data", 3000)
    TOKENIZER.save(tmp_path / "tokenizer")
    (tmp_path / "script.py").write_text(SCRIPT)
    running = start(tmp_path, "out", 2)
    assert running.stdout is not None
    running.stdout.readline()
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
    if not children.exists():
        running.kill()
        pytest.skip("this system does not list the children of a process under /proc")
    workers = [int(word) for word in children.read_text().split()]
    assert len(workers) >= 2
    running.send_signal(signal.SIGKILL)
    running.wait()
    running.stdout.close()
    deadline = time.monotonic() + 10
    while any(alive(worker) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(worker) for worker in workers)


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_validation_file_is_the_held_out_set_and_its_copies_are_dropped(tmp_path: Path) -> None:
    validation = write_txt(tmp_path / "v.txt", stories(30, first=590))
    shards = prepare(corpus_of(tmp_path, validation=[validation]), TOKENIZER, tmp_path / "out")
    train, held_out = texts_of(shards)
    assert held_out == stories(30, first=590)
    assert train == stories(590)
    assert shards.manifest["counts"]["equal_to_validation"] == 10


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_limits_are_exact(tmp_path: Path, processes: int) -> None:
    some = prepare(
        corpus_of(tmp_path, max_documents=250), TOKENIZER, tmp_path / "documents", processes=processes
    )
    assert some.train.documents + some.held_out.documents == 250
    few = prepare(corpus_of(tmp_path, max_tokens=5000), TOKENIZER, tmp_path / "tokens", processes=processes)
    assert 5000 <= few.train.tokens < 5300
    assert few.train.read(0, 3000).tolist() == some.train.read(0, 3000).tolist()


def test_finished_work_is_found_and_other_settings_are_refused(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path)
    first = prepare(corpus, TOKENIZER, tmp_path / "out")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert prepare(corpus, TOKENIZER, tmp_path / "out").manifest == first.manifest
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
    with pytest.raises(DataError, match=r"holds other data \(another max_tokens\)"):
        prepare(dataclasses.replace(corpus, max_tokens=100), TOKENIZER, tmp_path / "out")


def test_cache_has_a_folder_for_each_combination(tmp_path: Path) -> None:
    corpus, cache = corpus_of(tmp_path), tmp_path / "cache"
    first = prepare_cached(corpus, TOKENIZER, cache)
    assert prepare_cached(corpus, TOKENIZER, cache).folder == first.folder
    other = prepare_cached(corpus, CharacterTokenizer.count(stories(50), 128), cache)
    assert other.folder != first.folder
    assert set(cache.iterdir()) == {first.folder, other.folder}


def test_changed_source_is_not_mixed_into_unfinished_work(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path)
    with pytest.raises(RuntimeError, match="stop"):
        prepare(corpus, TOKENIZER, tmp_path / "out", report=stop)
    assert (tmp_path / "out" / PROGRESS).is_file()
    assert not (tmp_path / "out" / MANIFEST).exists()
    with pytest.raises(DataError, match=r"unfinished preparation of other data \(another source\)"):
        prepare(corpus_of(tmp_path, count=500), TOKENIZER, tmp_path / "out")


def stop(progress: Progress) -> None:
    raise RuntimeError("stop")


def test_folder_with_other_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="holds other files"):
        prepare(corpus_of(tmp_path), TOKENIZER, tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    with pytest.raises(ConfigError, match="--processes is 0"):
        prepare(corpus_of(tmp_path), TOKENIZER, tmp_path / "out", processes=0)


def test_what_is_refused_leaves_no_folder_and_keeps_the_users_own(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_bytes(b"")
    corpus = open_corpus([tmp_path / "empty.txt"])
    (tmp_path / "mine").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    for name in ("new", "mine", "link"):
        with pytest.raises(DataError, match="no document that can be used"):
            prepare(corpus, TOKENIZER, tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.txt", "link", "mine"]
    assert list((tmp_path / "mine").iterdir()) == []


def test_few_broken_lines_are_counted_and_many_are_an_error(tmp_path: Path) -> None:
    lines = [json.dumps({"text": text}) for text in stories(100)]
    (tmp_path / "few.jsonl").write_text("\n".join([*lines, "{broken", '{"text": ""}']))
    shards = prepare(open_corpus([tmp_path / "few.jsonl"]), TOKENIZER, tmp_path / "few")
    assert (shards.manifest["counts"]["broken"], shards.manifest["counts"]["empty"]) == (1, 1)
    assert shards.manifest["first_broken"].startswith(f"{tmp_path / 'few.jsonl'}, record 101: not JSON")
    (tmp_path / "many.jsonl").write_text("\n".join([*lines, *["{broken"] * 6]))
    with pytest.raises(
        DataError, match=r"6 of 106 records are broken \(first: .*many.jsonl, record 101: not JSON"
    ):
        prepare(open_corpus([tmp_path / "many.jsonl"]), TOKENIZER, tmp_path / "many")
    assert not (tmp_path / "many" / MANIFEST).exists()


def test_nothing_left_to_train_on(tmp_path: Path) -> None:
    data, validation = write_txt(tmp_path / "a.txt", stories(20)), write_txt(tmp_path / "v.txt", stories(30))
    with pytest.raises(DataError, match="no document is left to train on"):
        prepare(open_corpus([data], validation=[validation]), TOKENIZER, tmp_path / "out")


@pytest.mark.slow
def test_progress_counts_up_to_everything(tmp_path: Path) -> None:
    seen: list[Progress] = []
    shards = prepare(
        corpus_of(tmp_path, 20_000), TOKENIZER, tmp_path / "out", report=seen.append, processes=1
    )
    assert len(seen) > 2
    assert [one.documents for one in seen] == sorted(one.documents for one in seen)
    assert (seen[-1].documents, seen[-1].tokens) == (shards.train.documents, shards.train.tokens)
    assert seen[-1].fraction == 1.0
    assert seen[-1].eta_s == 0.0
    assert all(one.mb_per_s > 0 for one in seen)


@pytest.mark.slow
def test_a_document_of_many_megabytes(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    with path.open("w") as file:
        line = " ".join(stories(100)) + "\n"
        file.write(line * (12_000_000 // len(line)))
        file.write("<|endoftext|>\na short one\n<|endoftext|>\n")
    shards = prepare(open_corpus([path]), TOKENIZER, tmp_path / "out", processes=1)
    assert shards.train.documents == shards.held_out.documents == 1
    assert shards.train.text_bytes + shards.held_out.text_bytes > 11_900_000


def test_second_process_is_refused_while_the_first_works(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path)

    def meanwhile(progress: Progress) -> None:
        with pytest.raises(DataError, match="another process is preparing"):
            prepare(corpus, TOKENIZER, tmp_path / "out")

    prepare(corpus, TOKENIZER, tmp_path / "out", report=meanwhile)


def test_full_disk_is_one_line_and_can_be_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = corpus_of(tmp_path)
    real = os.fsync

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"No space left on device.*repeat the command"):
        prepare(corpus, TOKENIZER, tmp_path / "out")
    monkeypatch.setattr(os, "fsync", real)
    assert prepare(corpus, TOKENIZER, tmp_path / "out").train.documents > 500
