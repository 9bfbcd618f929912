"""Opening shards: what is missing, cut short, altered or of another tokenizer is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bitnet.corpus.corpus import open_corpus
from bitnet.corpus.prepare import prepare
from bitnet.data.shards import MANIFEST, Shards, token_dtype
from bitnet.errors import DataError, NotFoundError
from bitnet.files import sha256
from bitnet.text.bpe import train_bpe
from corpora import small_tokenizer, stories, write_txt

TOKENIZER = small_tokenizer()


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shards:
    monkeypatch.setattr("bitnet.corpus.encode.BATCH_BYTES", 4000)
    corpus = open_corpus([write_txt(tmp_path / "a.txt", stories(400))])
    return prepare(corpus, TOKENIZER, tmp_path / "out", shard_tokens=4000)


def test_what_was_written_opens_and_verifies(shards: Shards) -> None:
    again = Shards.open(shards.folder, TOKENIZER)
    again.verify(TOKENIZER.vocab_size)
    assert again.manifest == shards.manifest
    assert again.tokenizer().describe() == TOKENIZER.describe()
    assert len(again.manifest["splits"]["train"]) > 2


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_shard_cut_short_is_named(shards: Shards, suffix: str) -> None:
    path = shards.folder / f"train-00001{suffix}"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(DataError, match=rf"train-00001\{suffix} has [\d,]+ bytes instead of"):
        Shards.open(shards.folder)
    path.unlink()
    with pytest.raises(DataError, match=rf"train-00001\{suffix} is missing"):
        Shards.open(shards.folder)


@pytest.mark.parametrize("name", ["train-00001.bin", "held_out-00000.bin", "train-00000.idx"])
def test_altered_shard_is_named(shards: Shards, name: str) -> None:
    path = shards.folder / name
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DataError, match=rf"{name} was altered"):
        Shards.open(shards.folder).verify(TOKENIZER.vocab_size)
    with pytest.raises(DataError, match=rf"{name} was altered"):
        prepare(
            open_corpus([shards.folder.parent / "a.txt"]), TOKENIZER, shards.folder
        )  # what training opens


def test_finished_shards_are_hashed_without_keeping_others_out(
    shards: Shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = open_corpus([shards.folder.parent / "a.txt"])
    checked: list[Path] = []

    def verify(self: Shards, vocab_size: int) -> None:
        checked.append(self.folder)
        if len(checked) == 1:
            prepare(corpus, TOKENIZER, shards.folder)

    monkeypatch.setattr(Shards, "verify", verify)
    prepare(corpus, TOKENIZER, shards.folder)
    assert checked == [shards.folder] * 2


def test_another_tokenizer_is_refused(shards: Shards) -> None:
    with pytest.raises(DataError, match=r"made with another tokenizer \(sha256 \w{12}, not \w{12}\)"):
        Shards.open(shards.folder, train_bpe(stories(300, first=50), 320))


def test_unfinished_damaged_and_future_folders(shards: Shards, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no prepared data"):
        Shards.open(tmp_path / "absent")
    manifest = shards.folder / MANIFEST
    values = json.loads(manifest.read_text())
    for content, message in (
        ("{", "damaged"),
        ("{}", "damaged"),
        (json.dumps({**values, "format": 99}), "format 99"),
    ):
        manifest.write_text(content)
        with pytest.raises(DataError, match=message):
            Shards.open(shards.folder)


ENTRY = ("splits", "train", 0)
HOSTILE: dict[str, tuple[tuple[str | int, ...], object]] = {
    "a name outside": ((*ENTRY, "name"), "../../a"),
    "an absolute name": ((*ENTRY, "name"), "/etc/passwd"),
    "no name": ((*ENTRY, "name"), None),
    "words for a number": ((*ENTRY, "tokens"), "many"),
    "fewer than none": ((*ENTRY, "text_bytes"), -1),
    "a number of 30 digits": ((*ENTRY, "text_bytes"), 10**30),
    "numbers of another kind": (("dtype",), "<i2"),
    "no numbers": (("dtype",), "V2"),
    "nothing to train on": (("splits", "train"), []),
    "no tokenizer": (("tokenizer",), None),
    "an unnamed tokenizer": (("tokenizer",), {}),
    "a tokenizer without hash": (("tokenizer", "tokenizer_sha256"), None),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", HOSTILE)
def test_a_manifest_from_somebody_else_is_held_against_types(shards: Shards, case: str) -> None:
    """Names must be those of shards: as they came they were joined to the folder. Seven of these ended in a
    traceback.
    """
    (*way, last), value = HOSTILE[case]
    manifest = shards.folder / MANIFEST
    values = place = json.loads(manifest.read_text())
    for step in way:
        place = place[step]
    place[last] = value
    manifest.write_text(json.dumps(values))
    with pytest.raises(DataError, match=r"manifest\.json"):
        Shards.open(shards.folder, TOKENIZER)


def test_ids_beyond_the_vocabulary_are_no_data(shards: Shards) -> None:
    """They would be looked up in an embedding that does not have them."""
    path, manifest = shards.folder / "train-00000.bin", shards.folder / MANIFEST
    ids = np.fromfile(path, dtype="<u2")
    ids[7] = TOKENIZER.vocab_size
    path.write_bytes(ids.tobytes())
    values = json.loads(manifest.read_text())
    values["splits"]["train"][0]["bin_sha256"] = sha256(path)
    manifest.write_text(json.dumps(values))
    with pytest.raises(DataError, match=rf"train-00000\.bin holds the id {TOKENIZER.vocab_size}"):
        Shards.open(shards.folder).verify(TOKENIZER.vocab_size)


def test_reading_across_shards_is_reading_one_long_row(shards: Shards) -> None:
    stream = shards.train
    whole = np.concatenate(
        [np.fromfile(path, dtype="<u2") for path in sorted(shards.folder.glob("train-*.bin"))]
    )
    assert stream.tokens == len(whole)
    border = shards.manifest["splits"]["train"][0]["tokens"]
    for start, count in (
        (0, 5),
        (border - 3, 6),
        (border, 1),
        (0, len(whole)),
        (len(whole) - 2, 9),
        (len(whole), 3),
    ):
        assert stream.read(start, count).tolist() == whole[start : start + count].tolist()


def test_type_of_the_ids() -> None:
    assert (token_dtype(65_536), token_dtype(65_537)) == ("<u2", "<u4")
