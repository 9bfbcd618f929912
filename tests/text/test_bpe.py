"""Byte-level BPE: every text comes back, ids agree with other programs, the size is exact."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bitnet.errors import ConfigError, DataError, NotFoundError
from bitnet.text.bpe import SMALLEST, train_bpe
from bitnet.text.subword import SubwordTokenizer
from bitnet.text.tokenizer import BOS, EOS, PAD, SPECIAL_TOKENS, load_tokenizer
from bitnet.text.word_cache import pieces

NAMES = ("Tom", "Anna", "Zoë")
STORIES = [
    f"Once upon a time, {n} had {k} toys. {n} said, \"Let's play!\" and didn't stop.\n\n"
    for n in NAMES
    for k in range(30)
]
TOKENIZER = train_bpe(STORIES, 300)
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]))  # all of Unicode but halves of surrogate pairs
STORY_LIKE = st.lists(
    st.sampled_from(
        [
            "Tom",
            " said",
            " ",
            "\n",
            "\t",
            "\u00a0",
            "\x1c",
            "'s",
            "don't",
            ",",
            '"',
            "(A",
            "é",
            " 12",
            "½",
            "日本",
            "_x",
        ]
    )
)


@given(ANY_TEXT)
@example("</s> and <pad> inside a story")
@example("\x00\ufffe\ufeff\r\n  \u2028")
def test_every_text_comes_back(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@given(st.one_of(ANY_TEXT, STORY_LIKE.map("".join)))
def test_word_by_word_gives_the_ids_of_the_whole_text(text: str) -> None:
    """words.py cuts texts before the library sees them; the library alone is the reference."""
    whole = TOKENIZER._library.encode(text, add_special_tokens=False).ids
    assert TOKENIZER.encode(text) == whole
    assert TOKENIZER.encode(text) == whole, "again, now from memory"


@given(st.one_of(ANY_TEXT, STORY_LIKE.map("".join)))
def test_byte_lengths_add_up_to_the_text(text: str) -> None:
    assert TOKENIZER.byte_lengths()[TOKENIZER.encode_array(text)].sum() == len(text.encode())


@pytest.mark.slow
def test_a_long_document_is_encoded_in_pieces_with_the_ids_of_the_whole() -> None:
    text = "".join(STORIES) * 200
    assert [len(piece) > 1 << 20 for piece in pieces(text)] == [True, False]
    assert TOKENIZER.encode(text) == TOKENIZER._library.encode(text, add_special_tokens=False).ids


@given(st.one_of(ANY_TEXT, STORY_LIKE.map("".join)), st.integers(0, 20))
@example("12  34\u2003 5", 0)
def test_pieces_are_the_text_and_have_its_ids(text: str, size: int) -> None:
    assert "".join(pieces(text, size)) == text
    apart = [
        index
        for piece in pieces(text, size)
        for index in TOKENIZER._library.encode(piece, add_special_tokens=False).ids
    ]
    assert apart == TOKENIZER._library.encode(text, add_special_tokens=False).ids


def test_special_tokens_come_first_and_no_text_makes_them() -> None:
    assert [TOKENIZER._ids[token] for token in SPECIAL_TOKENS] == [0, 1, 2, 3]
    assert (TOKENIZER.pad_id, TOKENIZER.bos_id, TOKENIZER.eos_id) == (PAD, BOS, EOS)
    assert min(TOKENIZER.encode("".join(SPECIAL_TOKENS))) > 3
    assert TOKENIZER.decode([BOS, *TOKENIZER.encode("a"), EOS, PAD]) == "a"


def test_digits_stand_alone() -> None:
    assert len(TOKENIZER.encode("1923")) == 4


def test_auto_tokenizer_loads_the_folder_with_equal_ids(tmp_path: Path) -> None:
    import transformers

    TOKENIZER.save(tmp_path)
    other = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    assert (other.pad_token_id, other.bos_token_id, other.eos_token_id, other.unk_token_id) == (0, 1, 2, 3)
    assert len(other) == TOKENIZER.vocab_size
    for text in [
        *STORIES[:5],
        "",
        " ",
        "a</s>b <pad>",
        "  two  spaces\t\r\n",
        "héllo 日本語 ½ ٣ 2024",
        "\x00 \x85 \u3000",
    ]:
        assert other(text)["input_ids"] == TOKENIZER.encode(text), text
        assert other.decode(TOKENIZER.encode(text)) == text


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path / "a")
    again = load_tokenizer(tmp_path / "a")
    assert again.describe() == TOKENIZER.describe()
    assert again.describe()["tokenizer"] == "own"
    again.save(tmp_path / "b")
    assert (tmp_path / "a" / "tokenizer.json").read_bytes() == (
        tmp_path / "b" / "tokenizer.json"
    ).read_bytes()


def test_same_documents_same_tokenizer() -> None:
    assert train_bpe(iter(STORIES), 300).describe() == TOKENIZER.describe()
    assert train_bpe(STORIES, 299).describe() != TOKENIZER.describe()


def test_size_is_exact_or_an_error_says_what_the_data_supports() -> None:
    assert TOKENIZER.vocab_size == 300
    with pytest.raises(
        DataError, match=r"supports a vocabulary of 26\d entries only \(\d merges were found\)"
    ):
        train_bpe(["abc abc abc"], 2048)
    with pytest.raises(DataError, match="supports a vocabulary of 260 entries only"):
        train_bpe([], 300)
    with pytest.raises(ConfigError, match=f"at least {SMALLEST}"):
        train_bpe(STORIES, SMALLEST - 1)


def test_fewer_entries_are_taken_where_that_was_asked_for() -> None:
    tokenizer = train_bpe(["abc abc abc"], 2048, fewer=True)
    assert SMALLEST < tokenizer.vocab_size < 270
    assert tokenizer.decode(tokenizer.encode("abc xyz")) == "abc xyz"
    assert tokenizer.decode([*tokenizer.encode("abc"), 2047]) == "abc", (
        "an id of the model that no entry has says nothing"
    )
    assert train_bpe(STORIES, 300, fewer=True).describe() == TOKENIZER.describe()


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(DataError, match="surrogate"):
        TOKENIZER.encode("a\ud800b")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "{"),
        ("tokenizer.json", "{}"),
        ("tokenizer.json", "\xff"),
        ("tokenizer_config.json", "[1]"),
    ],
)
def test_damaged_folders_are_named(tmp_path: Path, name: str, content: str) -> None:
    TOKENIZER.save(tmp_path)
    (tmp_path / name).write_text(content, encoding="latin-1")
    with pytest.raises(DataError) as caught:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="bitnet tokenizer train"):
        load_tokenizer(tmp_path)


def test_truncation_and_special_names_of_a_foreign_folder(tmp_path: Path) -> None:
    """A pretrained tokenizer.json may cut long texts and add marks; here the ids are those of the whole text,
    bare.
    """
    TOKENIZER.save(tmp_path)
    settings = json.loads((tmp_path / "tokenizer.json").read_text())
    settings["truncation"] = {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0}
    (tmp_path / "tokenizer.json").write_text(json.dumps(settings))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<unk>"}}))
    foreign = SubwordTokenizer.load(tmp_path)
    assert foreign.encode(STORIES[0]) == TOKENIZER.encode(STORIES[0])
    assert foreign.eos_id == 3
    assert foreign.describe()["tokenizer"] == tmp_path.name


@pytest.mark.slow
@pytest.mark.skipif(
    "BITNET_TEST_DATA" not in os.environ, reason="BITNET_TEST_DATA does not name the folder with real text"
)
def test_real_stories_come_back_byte_for_byte() -> None:
    text = (Path(os.environ["BITNET_TEST_DATA"]) / "tinystories" / "validation.txt").read_text(
        encoding="utf-8"
    )
    tokenizer = train_bpe(text.split("<|endoftext|>"), 2048)
    ids = tokenizer.encode_array(text)
    assert tokenizer.decode(ids.tolist()) == text
    assert ids.tolist() == tokenizer._library.encode(text, add_special_tokens=False).ids
    assert 3.0 < len(text.encode()) / len(ids) < 4.5
    assert np.all(ids < 2048)
