"""The hub's streaming calls, on a local folder of data files: seeded, complete, and continued where they
stopped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bitnet.corpus import hub
from bitnet.corpus.corpus import Corpus, open_corpus
from bitnet.corpus.hub import HubDataset, newest_revision
from bitnet.corpus.preparation import LEAST_HELD_OUT
from bitnet.corpus.prepare import prepare
from bitnet.errors import DataError, NotFoundError
from corpora import small_tokenizer, stories, write_jsonl


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three files of 40 documents, as a data set's repository has them."""
    (tmp_path / "set").mkdir()
    for index in range(3):
        write_jsonl(tmp_path / "set" / f"train-{index}.jsonl", stories(40, first=40 * index))
    return tmp_path / "set"


def texts_of(source: HubDataset, position: dict[str, object] | None = None) -> list[str | None]:
    return [record.text for record in source.open(position)]


def test_every_document_once_in_an_order_of_the_seed(folder: Path) -> None:
    first = texts_of(HubDataset(str(folder), seed=1, block=50))
    assert sorted(map(str, first)) == sorted(stories(120))
    assert first != stories(120)
    assert first == texts_of(HubDataset(str(folder), seed=1, block=50))
    assert first != texts_of(HubDataset(str(folder), seed=2, block=50))


@pytest.mark.slow
@pytest.mark.parametrize("given", [0, 1, 49, 50, 51, 100, 119, 120])
def test_reading_goes_on_where_it_stopped(folder: Path, given: int) -> None:
    """The library's own shuffle buffer is not in its saved state; going on from that would lose what it held.

    Blocks of 50 end inside the files of 40, and 120 rows end with a block that is not full."""
    source = HubDataset(str(folder), seed=1, block=50)
    reading = source.open()
    rows = iter(reading)
    first = [next(rows).text for _ in range(given)]
    position = json.loads(json.dumps(reading.position()))
    assert first + texts_of(source, position) == texts_of(source)


def test_parquet_and_a_wrong_column(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": stories(30), "n": list(range(30))}), tmp_path / "train-0.parquet")
    assert sorted(map(str, texts_of(HubDataset(str(tmp_path))))) == sorted(stories(30))
    with pytest.raises(NotFoundError, match="no column 'body'; it has: n, text"):
        texts_of(HubDataset(str(tmp_path), column="body"))
    with pytest.raises(NotFoundError, match="cannot be opened"):
        texts_of(HubDataset(str(tmp_path), split="nothing"))


def test_prepared_like_any_source(folder: Path, tmp_path: Path) -> None:
    tokenizer = small_tokenizer()
    shards = prepare(open_corpus(dataset=str(folder), one_in=10), tokenizer, tmp_path / "out", processes=1)
    texts = [
        tokenizer.decode(ids.tolist())
        for stream in (shards.train, shards.held_out)
        for ids in stream.each_document()
    ]
    assert sorted(texts) == sorted(stories(120))
    assert shards.manifest["settings"]["source"]["dataset"] == str(folder)


def test_name_configuration_and_revision_reach_the_library(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    calls: list[tuple[object, ...]] = []
    real = datasets.load_dataset

    def load(path: str, config: str | None, **words: object) -> object:
        calls.append((path, config, words))
        return real(str(folder), split="train", streaming=True)

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(hub, "newest_revision", lambda name: "abc123")
    source = HubDataset("HuggingFaceTB/smollm-corpus:cosmopedia-v2")
    assert len(texts_of(source)) == 120
    assert calls == [
        (
            "HuggingFaceTB/smollm-corpus",
            "cosmopedia-v2",
            {"split": "train", "revision": "abc123", "streaming": True},
        )
    ]
    assert source.identity()["revision"] == source.revision == "abc123"


def test_without_a_network_one_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    answer = httpx2.Response(404, request=httpx2.Request("GET", "https://hub.invalid"))
    for error, words in (
        (
            httpx2.ConnectError("Name or service not known"),
            "hub cannot be reached .* local files with --data",
        ),
        (RepositoryNotFoundError("absent", response=answer), "no data set 'a/b'.* check the name"),
        (GatedRepoError("gated", response=answer), "accept its terms"),
    ):

        def fail(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(HfApi, "dataset_info", fail)
        with pytest.raises(NotFoundError, match=words) as caught:
            newest_revision("a/b")
        assert "\n" not in str(caught.value)


def test_connection_lost_on_the_way_can_be_continued(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = HubDataset(str(folder), block=50)

    def lost() -> Iterator[dict[str, str]]:
        yield {"text": "a story"}
        raise ConnectionError("reset by peer")

    monkeypatch.setattr(hub.HubReading, "_rows", lambda self: lost())
    with pytest.raises(
        DataError, match=r"failed in block 0 \(ConnectionError: reset by peer\); repeat the command"
    ):
        texts_of(source)


def test_a_short_run_reads_a_stream_no_further_than_it_needs(folder: Path, tmp_path: Path) -> None:
    """Ten tokens were enough after one document, none of which was held out: "no document is left in the
    held-out set".
    """
    read: list[int] = []

    class Counted(HubDataset):
        def block_of(self, rows: Iterator[dict[str, object]], number: int) -> list[object]:
            block = super().block_of(rows, number)
            read.append(len(block))
            return block

    for number in range(3, 60):
        write_jsonl(folder / f"train-{number}.jsonl", stories(40, first=40 * number))
    source = Counted(str(folder), seed=1, block=20)
    shards = prepare(
        Corpus(source, one_in=10, max_tokens=10), small_tokenizer(), tmp_path / "out", processes=1
    )
    assert shards.train.documents == 1
    assert shards.held_out.documents == LEAST_HELD_OUT
    assert sum(read) < 60 * 40


def test_without_a_network_the_revision_of_the_last_time_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was prepared can be found again; what never was cannot be begun."""

    def unreachable(name: str) -> str:
        raise NotFoundError(f"the hub cannot be reached for {name}")

    monkeypatch.setattr(hub, "newest_revision", lambda name: "abc123")
    assert HubDataset("some/set", cache=tmp_path / "cache").revision == "abc123"
    monkeypatch.setattr(hub, "newest_revision", unreachable)
    assert HubDataset("some/set", cache=tmp_path / "cache").revision == "abc123"
    with pytest.raises(NotFoundError):
        HubDataset("other/set", cache=tmp_path / "cache")
    with pytest.raises(NotFoundError):
        HubDataset("some/set")
    assert HubDataset("other/set", revision="def456").revision == "def456"
