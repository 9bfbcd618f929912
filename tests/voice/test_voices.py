"""A voice is one file. What may stand in it, and what each mistake is called."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bitnet.errors import DataError, NotFoundError
from bitnet.voice.voices import BUILT_IN, built_in, find_voice

PIRATE = """
name = "pirate"
style = "You are a pirate."
[templates]
openings = ["Arr, {topic} be {kind}."]
[slots]
kind = ["treasure", "bilge"]
[signs]
arr = 1
"""


def written(folder: Path, text: str) -> str:
    path = folder / "voice.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_built_in_voices_are_whole(name: str) -> None:
    voice = built_in(name)
    assert voice.name == name
    assert find_voice(name) == voice
    assert voice.templates["openings"]


def test_a_file_of_five_keys_is_a_voice(tmp_path: Path) -> None:
    voice = find_voice(written(tmp_path, PIRATE))
    assert (voice.name, voice.signs, voice.slots["kind"]) == ("pirate", {"arr": 1.0}, ("treasure", "bilge"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("style =", "stile ="), "unknown key 'stile'. Did you mean \"style\"?"),
        (("openings", "opening"), "unknown key 'opening'. Did you mean \"openings\"?"),
        (("{kind}", "{kinds}"), "unknown slot 'kinds'. Did you mean \"kind\"?"),
        (("{topic} be", "it be"), "no opening has {topic}"),
        (('"You are a pirate."', '""'), "needs style"),
        (('"pirate"', '"two words"'), "it must be a letter"),
        (('"bilge"', '"{kind}"'), "contains itself"),
        (("arr = 1", "arr = 'much'"), "it must be a number"),
        (("arr = 1", '"(arr" = 1'), "not a regular expression"),
        (('["treasure", "bilge"]', "[]"), "list of texts with at least one"),
        (('["treasure", "bilge"]', "3"), "list of texts with at least one"),
        (("[slots]", "[slots"), "is not TOML"),
    ],
)
def test_each_mistake_is_named(change: tuple[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as raised:
        find_voice(written(tmp_path, PIRATE.replace(*change)))
    assert message in str(raised.value)


def test_an_unknown_name_suggests_the_known_one() -> None:
    with pytest.raises(NotFoundError, match='Did you mean "bitnut"'):
        find_voice("bitnutt")


def test_a_file_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "voice.toml"
    path.write_bytes(b'name = "\xff"')
    with pytest.raises(DataError, match="UTF-8"):
        find_voice(str(path))


@pytest.mark.parametrize(
    "content",
    [b"a = " + b"[" * 5000, b"\xff\xfe", b"a = " + b"9" * 5000, b"name = 1979-05-27", b"[[name]]\n" * 9],
)
def test_a_hostile_voice_file_is_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"mine\.toml") as caught:
        find_voice(str(path))
    assert "\n" not in str(caught.value)


def test_a_pipe_is_no_voice_file(tmp_path: Path) -> None:
    """Reading it would wait for ever."""
    os.mkfifo(tmp_path / "mine.toml")
    with pytest.raises(DataError, match="not a regular file"):
        find_voice(str(tmp_path / "mine.toml"))
