"""Which documents are held out: a function of their content, never none, with all their copies."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitnet.corpus.corpus import Corpus, open_corpus
from bitnet.corpus.documents import LocalFiles
from bitnet.corpus.holdout import HoldOut, Role, choose_hold_out, content_hash
from bitnet.errors import ConfigError, DataError
from corpora import stories, write_txt


def rule_for(path: Path, texts: list[str], one_in: int = 100) -> HoldOut:
    return choose_hold_out(LocalFiles([write_txt(path, texts)]), one_in)


def held(rule: HoldOut, texts: list[str]) -> list[str]:
    return [text for text in texts if rule.role(content_hash(text)) is Role.HELD_OUT]


def test_about_one_in_a_hundred_whatever_stands_around(tmp_path: Path) -> None:
    texts = stories(5000)
    rule = rule_for(tmp_path / "a.txt", texts)
    assert 30 <= len(held(rule, texts)) <= 70
    assert rule_for(tmp_path / "b.txt", texts[::-1]) == rule, "the order plays no role"
    assert rule_for(tmp_path / "c.txt", texts[1000:]) == rule, "nor do other documents"


def test_the_hash_has_not_changed() -> None:
    """Another hash would train on documents that existing runs were judged on."""
    assert content_hash("Once upon a time").hex() == "32e8ca8d58ff93976cca33aa4f6bbce8"


def test_copies_that_differ_in_white_space_and_form_of_accents_are_one() -> None:
    assert content_hash("Zoé  ran\r\nhome. ") == content_hash(" Zoe\u0301 ran home.")
    assert content_hash("Zoé ran home.") != content_hash("Zoé ran home!")
    long = "word " * 300_000
    assert content_hash(long) == content_hash(long.replace(" ", "\n"))


@pytest.mark.parametrize("count", [2, 3, 20])
def test_small_sources_hold_out_exactly_the_smallest_hash_where_the_rule_finds_none(
    tmp_path: Path, count: int
) -> None:
    texts = stories(count)
    assert not held(HoldOut((1 << 128) // 100), texts), "an example where one in a hundred is none"
    assert len(held(rule_for(tmp_path / "a.txt", texts), texts)) == 1


def test_one_document_or_its_copies_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1 different document, .*--validation"):
        rule_for(tmp_path / "a.txt", stories(1) * 3)
    with pytest.raises(DataError, match=r"no document that can be used \(1 empty\)"):
        rule_for(tmp_path / "b.txt", [])
    with pytest.raises(ConfigError, match="one in 2"):
        rule_for(tmp_path / "c.txt", stories(5), one_in=1)


def test_validation_documents_are_dropped_from_training(tmp_path: Path) -> None:
    texts = stories(10)
    validation = write_txt(tmp_path / "validation.txt", [f"  {texts[3]}\n", *stories(5, first=100)])
    corpus = open_corpus([write_txt(tmp_path / "train.txt", texts)], validation=[validation])
    assert list(corpus.training_texts()) == [*texts[:3], *texts[4:]]


def test_tokenizer_learns_from_training_documents_only(tmp_path: Path) -> None:
    texts = stories(1000)
    corpus = open_corpus([write_txt(tmp_path / "train.txt", texts)])
    kept_back = held(corpus.hold_out, texts)
    assert kept_back
    assert set(corpus.sampled_texts(10_000, seed=1)) == set(texts) - set(kept_back)
    some = list(corpus.sampled_texts(100, seed=1))
    assert 90 <= len(some) <= 100
    assert set(some).isdisjoint(kept_back)
    assert some == list(corpus.sampled_texts(100, seed=1))
    assert some != list(corpus.sampled_texts(100, seed=2))
    assert texts.index(some[-1]) > 500, "drawn from everywhere, not from the start"


def test_words_that_describe_no_corpus(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--data, or a data set of the hub with --dataset"):
        open_corpus([])
    with pytest.raises(ConfigError, match="--max-tokens is 0"):
        Corpus(LocalFiles([write_txt(tmp_path / "a.txt", stories(3))]), max_tokens=0)
