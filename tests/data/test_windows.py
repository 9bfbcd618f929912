"""Windows: each once an epoch, from any row at once, never one with a held-out document."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from bitnet.corpus.corpus import Corpus, open_corpus
from bitnet.corpus.prepare import prepare
from bitnet.data.shards import Shards
from bitnet.data.stream import concatenate, row_numbers
from bitnet.data.windows import WindowRows, held_out_batches
from bitnet.errors import ConfigError, DataError
from bitnet.text.bpe import train_bpe
from bitnet.text.tokenizer import PAD
from corpora import small_tokenizer, stories, write_txt

TOKENIZER = small_tokenizer()


T = 16


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return open_corpus([write_txt(tmp_path_factory.mktemp("corpus") / "a.txt", stories(400))], one_in=10)


@pytest.fixture(scope="module")
def shards(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Shards:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bitnet.corpus.encode.BATCH_BYTES", 4000)
        return prepare(corpus, TOKENIZER, tmp_path_factory.mktemp("shards") / "out", shard_tokens=4000)


@pytest.fixture
def source(shards: Shards) -> WindowRows:
    return WindowRows(shards, seq_len=T, seed=3)


def test_every_window_once_an_epoch_and_every_token_once_a_target(source: WindowRows, shards: Shards) -> None:
    stream = shards.train.read(0, shards.train.tokens)
    expected = sorted(tuple(stream[start : start + T + 1].tolist()) for start in range(0, len(stream) - T, T))
    for epoch in range(2):
        batch = source.rows(np.arange(source.windows) + epoch * source.windows)
        windows = torch.cat((batch.input_ids, batch.targets[:, -1:]), dim=1).tolist()
        assert sorted(map(tuple, windows)) == expected
        assert bool(batch.loss_mask.all())
    first, second = (
        source.window_numbers(np.arange(50) + epoch * source.windows).tolist() for epoch in range(2)
    )
    assert first != second


def test_one_row_does_not_depend_on_the_others_in_its_batch(source: WindowRows) -> None:
    numbers = np.array(
        [source.windows - 1, source.windows, 0, 12_345_678], dtype=np.int64
    )  # over the border of two epochs
    together = source.rows(numbers)
    alone = concatenate([source.rows(numbers[index : index + 1]) for index in range(4)])
    assert all(
        torch.equal(a, b) for a, b in zip(together.tensors().values(), alone.tensors().values(), strict=True)
    )
    other = WindowRows(source.shards, seq_len=T, seed=4).rows(numbers)
    assert not torch.equal(together.input_ids, other.input_ids)


@pytest.mark.parametrize("world", [2, 4])
def test_processes_together_read_the_rows_of_one(source: WindowRows, world: int) -> None:
    whole = source.rows(row_numbers(7, 0, batch_size=8, accumulation=1, rank=0, world_size=1))
    parts = [
        source.rows(row_numbers(7, 0, batch_size=8 // world, accumulation=1, rank=rank, world_size=world))
        for rank in range(world)
    ]
    assert all(
        torch.equal(a, b)
        for a, b in zip(whole.tensors().values(), concatenate(parts).tensors().values(), strict=True)
    )


def test_no_window_contains_a_held_out_document(source: WindowRows, shards: Shards, corpus: Corpus) -> None:
    """By enumeration: the documents that all windows of an epoch spell, put together again."""
    order = np.argsort(source.window_numbers(np.arange(source.windows)))
    rows = source.rows(np.arange(source.windows)).targets[order].flatten().tolist()
    spelled = {TOKENIZER.decode(part) for part in split(rows, TOKENIZER.eos_id)}
    held_out = {TOKENIZER.decode(ids.tolist()) for ids in shards.held_out.each_document()}
    assert len(held_out) > 20
    assert spelled.isdisjoint(held_out)
    assert len(spelled & set(corpus.training_texts())) >= shards.train.documents - 2, (
        "all but the first and the last, which are cut"
    )
    everything = "".join(
        TOKENIZER.decode(row) for row in source.rows(np.arange(source.windows)).input_ids.tolist()
    )
    assert not any(text[: len(text) // 2] in everything for text in held_out)


def split(ids: list[int], end: int) -> list[list[int]]:
    parts: list[list[int]] = [[]]
    for one in ids:
        if one == end:
            parts.append([])
        else:
            parts[-1].append(one)
    return parts


def test_epochs_above_four_have_to_be_asked_for(source: WindowRows) -> None:
    assert source.check_epochs(4 * source.windows, allow_repeat=False) == 4.0
    with pytest.raises(ConfigError, match=r"makes 4\.\d epochs; above 4, .* --allow-repeat"):
        source.check_epochs(4 * source.windows + source.windows // 10, allow_repeat=False)
    assert source.check_epochs(40 * source.windows, allow_repeat=True) == 40.0


def test_less_than_one_row_is_refused(shards: Shards) -> None:
    with pytest.raises(DataError, match="needs 1,000,001"):
        WindowRows(shards, seq_len=1_000_000, seed=0)


def test_fingerprint_names_the_data(source: WindowRows, shards: Shards) -> None:
    fingerprint = source.fingerprint()
    assert fingerprint["dataset_name"] == "a.txt"
    assert fingerprint["dataset_size_tokens"] == shards.train.tokens
    assert fingerprint["corpus_tokens"] == shards.train.tokens + shards.held_out.tokens
    assert fingerprint["corpus_sampling"] == "every_document"
    assert fingerprint["tokenizer_vocab_size"] == 320
    assert fingerprint["windows_per_epoch"] == source.windows
    assert {
        "hf_revision",
        "first_1000_token_ids_sha256",
        "sampling_strategy",
        "train_sha256",
        "held_out_sha256",
    } <= fingerprint.keys()


def test_held_out_windows_cover_every_token_and_score_no_padding(shards: Shards) -> None:
    stream = shards.held_out
    batches = held_out_batches(shards, seq_len=T, batch_size=8, max_windows=10_000, pad_id=PAD)
    scored = torch.cat([batch.targets[batch.loss_mask] for batch in batches])
    assert scored.tolist() == stream.read(1, stream.tokens).tolist()
    assert all(batch.input_ids.shape == (8, T) for batch in batches[:-1])
    few, again = (
        held_out_batches(shards, seq_len=T, batch_size=4, max_windows=6, pad_id=PAD) for _ in range(2)
    )
    assert [len(batch.input_ids) for batch in few] == [4, 2]
    assert all(torch.equal(a.input_ids, b.input_ids) for a, b in zip(few, again, strict=True))


def test_byte_lengths_give_the_bytes_of_the_held_out_text(shards: Shards) -> None:
    batches = held_out_batches(shards, seq_len=T, batch_size=64, max_windows=10_000, pad_id=PAD)
    lengths = torch.from_numpy(TOKENIZER.byte_lengths())
    scored = sum(int(lengths[batch.targets[batch.loss_mask]].sum()) for batch in batches)
    first = int(lengths[int(shards.held_out.read(0, 1)[0])])
    assert scored + first == shards.held_out.text_bytes


@pytest.mark.skipif(
    "BITNET_TEST_DATA" not in os.environ, reason="BITNET_TEST_DATA does not name the folder with real text"
)
def test_on_real_stories_no_training_document_is_one_of_the_validation_file(tmp_path: Path) -> None:
    data = Path(os.environ["BITNET_TEST_DATA"]) / "tinystories"
    corpus = open_corpus([data / "train.txt"], validation=[data / "validation.txt"], max_documents=500)
    shards = prepare(corpus, train_bpe(corpus.sampled_texts(300, 1), 1024), tmp_path / "out", processes=1)
    assert (shards.train.documents, shards.held_out.documents) == (500, 617)
    trained = {tuple(ids.tolist()) for ids in shards.train.each_document()}
    assert trained.isdisjoint(tuple(ids.tolist()) for ids in shards.held_out.each_document())
