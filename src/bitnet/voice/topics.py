"""What people may ask about: one topic a line, in any words; and which topics are held out from fine-tuning.

A hash of the topic itself decides whether it is held out, so neither the order of the file nor a topic added
later moves another one from one side to the other. One in five is held out: 20 of the 100 built-in topics.
"""

from __future__ import annotations

import unicodedata
from importlib import resources
from pathlib import Path

from bitnet.data.generated import held_out
from bitnet.errors import DataError, NotFoundError
from bitnet.files import open_regular

HELD_OUT_ONE_IN = 5
MAX_BYTES = 16 << 20  # 100 topics have 1 kB
LONGEST = 200  # characters of a topic; a longer line is a text


def built_in_topics() -> list[str]:
    """The 100 topics of this package."""
    return _topics(
        resources.files("bitnet.voice").joinpath("topics.txt").read_text(encoding="utf-8"), "topics.txt"
    )


def read_topics(path: Path) -> list[str]:
    """The topics of a file, in order, each once. Raises DataError if there is none."""
    try:
        with open_regular(path) as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise DataError(
                f"{path} has more than the {MAX_BYTES:,} bytes that a list of topics may have; split it"
            )
        return _topics(text.decode("utf-8-sig"), str(path))
    except OSError as error:
        raise NotFoundError(
            f"the topics file {path} cannot be read ({error.strerror}); give a text file with one topic a "
            "line"
        ) from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from None


def _topics(text: str, where: str) -> list[str]:
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        topic = " ".join(line.split())
        if len(topic) > LONGEST:
            raise DataError(
                f"{where}, line {number}: a topic of {len(topic)} characters; give one short topic a line, "
                f"up to {LONGEST}"
            )
        if any(unicodedata.category(letter) == "Cc" for letter in topic):
            raise DataError(
                f"{where}, line {number}: control characters in a topic; give a text file with one topic a "
                "line"
            )
        if topic:
            found.setdefault(same(topic), topic)
    if not found:
        raise DataError(f"{where} has no topic; write one on each line, for example: the moon")
    return list(found.values())


def same(text: str) -> str:
    """The form in which texts are compared: Unicode form, case and spaces make no difference."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def is_held_out(topic: str) -> bool:
    """Whether a topic is held out from fine-tuning, for judging."""
    return held_out(f"topic {same(topic)}", HELD_OUT_ONE_IN)


def mentions(text: str, topic: str) -> bool:
    """Whether a text contains the words of a topic in their order, in any case."""
    return same(topic) in same(text)
