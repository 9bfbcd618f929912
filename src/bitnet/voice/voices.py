"""A voice is a small TOML file: who speaks, how to tell a teacher so, and how to recognise the result.

    name        the label before the answers (`bitnut:`)
    about       one line for people
    style       instructions to a language model; the teacher's system prompt
    templates   sentences for the built-in grammar (teachers.py): openings, optional middles and closings
    slots       words that fill {slot} in a template; {topic} is the topic of the prompt
    signs       words and patterns of the voice with their points (score.py)
    in_voice_at points from which a text is in the voice
    breaks      patterns of answers that fall out of character (score.py)

Built in are `bitnut`, the default; `plain`, which answers like a reference book, for the other side of
preference pairs; and `human`, which asks. Not here: whatever writes in the voice (teachers.py).
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from bitnet.errors import DataError, NotFoundError, did_you_mean
from bitnet.files import read_text, sha256_of

BUILT_IN = ("bitnut", "plain", "human")
TOPIC = "topic"
SLOT = re.compile(r"\{(\w+)\}")
VOICE_FILE = "voice.toml"  # in a folder of answers: the voice that they are in
MAX_BYTES = 1 << 20  # the built-in voices have some 10 kB
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,30}")
PARTS = ("openings", "middles", "closings")
KEYS = ("name", "about", "style", "templates", "slots", "signs", "in_voice_at", "breaks")


@dataclass(frozen=True)
class Voice:
    """A checked voice file. text: its content, which is kept beside the data; sha256: of that text."""

    name: str
    style: str
    sha256: str
    text: str = ""
    about: str = ""
    templates: Mapping[str, Sequence[str]] = field(default_factory=dict)
    slots: Mapping[str, Sequence[str]] = field(default_factory=dict)
    signs: Mapping[str, float] = field(default_factory=dict)
    in_voice_at: float = 1.0
    breaks: Sequence[str] = ()


def built_in(name: str) -> Voice:
    """A voice of this package."""
    assert name in BUILT_IN
    return _voice(
        resources.files("bitnet.voice").joinpath(f"{name}.toml").read_text(encoding="utf-8"), f"voice {name}"
    )


def find_voice(word: str) -> Voice:
    """A built-in voice by name, or a voice file by path."""
    if word in BUILT_IN:
        return built_in(word)
    path = Path(word)
    if not path.exists() or path.is_dir():
        raise NotFoundError(
            f"there is no voice {word!r}: neither a file nor built in.{did_you_mean(word, BUILT_IN)}"
        )
    return _voice(read_text(path, MAX_BYTES, "save it as UTF-8, in a file of its own"), str(path))


def _voice(text: str, where: str) -> Voice:
    """Parse and check. Raises DataError that names the wrong key."""
    try:
        values = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not TOML ({error}); correct it") from None
    _known(values, KEYS, where)
    for key in ("name", "style"):
        if not isinstance(values.get(key), str) or not values[key].strip():
            raise DataError(f"{where} needs {key} = a text; add it")
    if not NAME.fullmatch(values["name"]):
        raise DataError(
            f"{where}: name is {values['name']!r}; it must be a letter and up to 30 letters, digits, - or _"
        )
    if not isinstance(values.get("about", ""), str):
        raise DataError(f"{where}: about must be a text; put it in quotes")
    voice = Voice(
        name=values["name"],
        style=values["style"].strip(),
        sha256=sha256_of(text),
        text=text,
        about=values.get("about", ""),
        templates=_lists(values.get("templates", {}), where, "templates"),
        slots=_lists(values.get("slots", {}), where, "slots"),
        signs=_points(values.get("signs", {}), where),
        in_voice_at=_number(values.get("in_voice_at", 1.0), where, "in_voice_at"),
        breaks=_lists({"breaks": values["breaks"]}, where, "the file")["breaks"]
        if "breaks" in values
        else (),
    )
    _check_templates(voice, where)
    for pattern in (*voice.signs, *voice.breaks):
        _check_pattern(pattern, where)
    return voice


def _known(values: Mapping[str, Any], keys: Sequence[str], where: str) -> None:
    for key in values:
        if key not in keys:
            raise DataError(f"{where} has an unknown key {key!r}.{did_you_mean(key, keys)}")


def _lists(values: Any, where: str, section: str) -> dict[str, tuple[str, ...]]:
    """Check a table of lists of texts, none of them empty."""
    if not isinstance(values, dict):
        raise DataError(f"{where}: {section} must be a table of lists, as in [{section}]")
    for key, entries in values.items():
        texts = isinstance(entries, list) and all(isinstance(entry, str) for entry in entries)
        if not texts or not entries:
            raise DataError(f"{where}: {key} in {section} must be a list of texts with at least one entry")
    return {key: tuple(entries) for key, entries in values.items()}


def _points(values: Any, where: str) -> dict[str, float]:
    if not isinstance(values, dict):
        raise DataError(f"{where}: signs must be a table of patterns with points, as in [signs]")
    return {pattern: _number(points, where, f"the sign {pattern!r}") for pattern, points in values.items()}


def _number(value: Any, where: str, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"{where}: {what} is {value!r}; it must be a number")
    return float(value)


def _check_templates(voice: Voice, where: str) -> None:
    """Check parts and slots: all known, no slot that contains itself, and a place for the topic."""
    _known(voice.templates, PARTS, f"{where}, [templates],")
    if voice.templates and "openings" not in voice.templates:
        raise DataError(f"{where}: [templates] needs openings; every answer of the grammar begins with one")
    if TOPIC in voice.slots:
        raise DataError(f"{where}: the slot {TOPIC} is the prompt's topic; rename yours")
    sentences = [text for part in voice.templates.values() for text in part]
    for text in (*sentences, *(word for words in voice.slots.values() for word in words)):
        for slot in SLOT.findall(text):
            if slot != TOPIC and slot not in voice.slots:
                raise DataError(
                    f"{where}: the template {text!r} has an unknown slot "
                    f"{slot!r}.{did_you_mean(slot, [*voice.slots, TOPIC])}"
                )
    for slot in voice.slots:
        if slot in _reachable(voice, slot):
            raise DataError(f"{where}: the slot {slot!r} contains itself; remove one of its uses")
    if sentences and not any(f"{{{TOPIC}}}" in text for text in voice.templates["openings"]):
        raise DataError(
            f"{where}: no opening has {{{TOPIC}}}; put it into one, or answers cannot mention what was asked"
        )


def _reachable(voice: Voice, slot: str) -> set[str]:
    """The slots in the words of a slot, directly or through others."""
    found: set[str] = set()
    waiting = [slot]
    while waiting:
        named = {name for word in voice.slots.get(waiting.pop(), ()) for name in SLOT.findall(word)}
        waiting += named - found
        found |= named
    return found


def _check_pattern(pattern: str, where: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise DataError(f"{where}: {pattern!r} is not a regular expression ({error}); correct it") from None
