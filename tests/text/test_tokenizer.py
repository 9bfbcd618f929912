"""A tokenizer's folder is whole or absent, and is recognised by its files."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitnet.errors import DataError, NotFoundError
from bitnet.text.characters import CharacterTokenizer
from bitnet.text.subword import SubwordTokenizer
from bitnet.text.tokenizer import load_tokenizer, save_in_place
from corpora import small_tokenizer

CHARACTERS = CharacterTokenizer("ab\n", 8)


def test_each_kind_is_found_by_its_files(tmp_path: Path) -> None:
    CHARACTERS.save(tmp_path / "characters")
    small_tokenizer().save(tmp_path / "subword")
    assert isinstance(load_tokenizer(tmp_path / "characters"), CharacterTokenizer)
    assert isinstance(load_tokenizer(tmp_path / "subword"), SubwordTokenizer)
    with pytest.raises(NotFoundError, match="there is no tokenizer in"):
        load_tokenizer(tmp_path)


def test_a_folder_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_in_place(CHARACTERS, tmp_path / "made")
    assert load_tokenizer(tmp_path / "made").encode("ab") == CHARACTERS.encode("ab")

    def fails(folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "half").touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(CharacterTokenizer, "save", lambda self, folder: fails(folder))
    with pytest.raises(DataError, match="No space left on device"):
        save_in_place(CHARACTERS, tmp_path / "other")
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_a_folder_that_holds_something_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "notes").write_text("mine")
    with pytest.raises(DataError, match="cannot be written"):
        save_in_place(CHARACTERS, tmp_path / "made")
    assert (tmp_path / "made" / "notes").read_text() == "mine"
