"""A chat: what is shown of an answer, when it ends, and what the model reads of a long conversation.

The model's part is played by a script, so that each hard place can be put exactly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import bitnet.generate.session as module
from bitnet.engine.from_torch import packed as pack
from bitnet.errors import DataError
from bitnet.generate.decode import ReadText, stream
from bitnet.generate.sampling import GREEDY
from bitnet.generate.session import ChatSession, Labels
from bitnet.kernels import library
from bitnet.nn.config import BitNetConfig
from bitnet.nn.transformer import BitNetTransformer
from bitnet.text.chat import Turn
from corpora import small_tokenizer

TOKENIZER = small_tokenizer()
Script = Callable[..., ChatSession]


@pytest.fixture
def script(tiny_config: BitNetConfig, monkeypatch: pytest.MonkeyPatch) -> Script:
    """A session whose model says these texts, one after another, token by token. `read` collects its
    prompts.
    """

    def begin(
        *texts: str, end: bool = True, context: int = 200, read: list[str] | None = None, **options: Any
    ) -> ChatSession:
        waiting = iter(texts)

        def said(
            model: object, prompt: list[int], *, max_new_tokens: int, sampling: object, memory: object
        ) -> Iterator[tuple[int, None]]:
            if read is not None:
                read.append(TOKENIZER.decode(prompt))
            ids = TOKENIZER.encode(next(waiting)) + [TOKENIZER.eos_id] * end
            for token in ids[:max_new_tokens]:
                yield token, None

        monkeypatch.setattr(module, "stream", said)
        model = BitNetTransformer(dataclasses.replace(tiny_config, vocab_size=320, max_seq_length=context))
        return ChatSession(model, TOKENIZER, **options)

    return begin


def answers(session: ChatSession, *texts: str) -> list[str]:
    return ["".join(session.reply(text, GREEDY)) for text in texts]


def test_an_answer_is_streamed_without_its_first_space(script: Script) -> None:
    session = script(" The cat sat under the moon.")
    pieces = list(session.reply("Where?", GREEDY))
    assert "".join(pieces) == "The cat sat under the moon."
    assert len(pieces) > 3
    assert session.ended


@pytest.mark.parametrize(
    "text",
    [
        " Woof!\nhuman: And the moon?\nbitnut: Arf!",
        " Woof!human: And?",
        " Woof!  \n\n Human: And?",
        " Woof! bitnut: Arf!",
        " Woof!\nBITNUT: Arf!",
        " Woof!\nhuman:",
    ],
)
def test_the_other_sides_turn_is_never_shown(script: Script, text: str) -> None:
    session = script(text, end=False)
    assert answers(session, "Hi") == ["Woof!"]
    assert session.ended
    assert session.turns[0].answer == "Woof!"


@pytest.mark.parametrize(
    "text",
    [
        "A human is no squirrel.",
        "The superhuman: who?",
        "My human",
        "humans: many",
        "Ask bitnutty: why.",
        "h",
        "The end of the hum",
    ],
)
def test_what_only_begins_like_a_label_is_shown_once_that_is_clear(script: Script, text: str) -> None:
    assert answers(script(f" {text}"), "Hi") == [text]


def test_what_is_held_back_at_the_limit_of_length_stays_hidden(script: Script) -> None:
    """The model was on its way to write `human:` when its room ended."""
    session = script(" Woof!\nhum", end=False)
    assert answers(session, "Hi") == ["Woof!"]
    assert not session.ended


def test_a_character_of_several_tokens_comes_whole(script: Script) -> None:
    session = script(" Ü 猫 🐾!")
    pieces = list(session.reply("?", GREEDY))
    assert "".join(pieces) == "Ü 猫 🐾!"
    assert not any("\ufffd" in piece for piece in pieces)


@given(
    st.lists(
        st.sampled_from(["h", "hu", "man:", "human", ":", " ", "\n", "bit", "nut:", "bitnut:", "dog", "."]),
        max_size=12,
    )
)
def test_nothing_shown_is_ever_taken_back(parts: list[str]) -> None:
    """However a text grows, what was safe to show stays part of the answer."""
    labels = Labels("human", "bitnut")
    text, shown = "", ""
    for part in parts:
        text += part
        assert text[: labels.safe(text)].startswith(shown)
        shown = text[: labels.safe(text)]
        end = labels.found(text)
        if end is not None:
            assert shown == text[:end].rstrip() or shown == text[:end]
            return


def test_the_history_is_read_again(script: Script) -> None:
    read: list[str] = []
    session = script(" A cat.", " A dog.", read=read, system="Be short.")
    answers(session, "What is it?", "And now?")
    assert read[0] == "system: Be short.\nhuman: What is it?\nbitnut:"
    assert read[1] == "system: Be short.\nhuman: What is it?\nbitnut: A cat.human: And now?\nbitnut:"
    session.clear()
    assert session.turns == []


def test_the_oldest_turns_are_dropped_and_counted(script: Script) -> None:
    read: list[str] = []
    session = script(*[" The cat sat on the moon."] * 8, context=100, read=read, max_new_tokens=20)
    forgotten = []
    for number in range(8):
        answers(session, f"Question {number}?")
        forgotten.append(session.forgotten)
    assert forgotten[0] == 0
    assert forgotten[-1] > forgotten[3] >= 0
    assert forgotten == sorted(forgotten)
    assert "Question 0?" not in read[-1]
    assert f"Question {forgotten[-1]}?" in read[-1]
    assert len(TOKENIZER.encode(read[-1])) <= 100 - 20


def test_a_message_longer_than_the_context_is_refused_and_not_remembered(script: Script) -> None:
    session = script(" Woof!", " Woof!", context=30)
    with pytest.raises(
        DataError, match=r"the message has \d+ tokens, the model reads 30 with its answer; shorten it"
    ):
        answers(session, "moon " * 40)
    assert session.turns == []
    assert answers(session, "moon") == ["Woof!"]


def test_stopping_early_keeps_what_was_shown(script: Script) -> None:
    session = script(" The cat sat under the moon.")
    stream = session.reply("Where?", GREEDY)
    first = next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert session.turns[0].answer == first


def test_a_real_model_answers(tiny_config: BitNetConfig) -> None:
    """Untrained, through the real decoder: it says something or nothing, and never more tokens than it
    may.
    """
    torch.manual_seed(0)
    session = ChatSession(
        BitNetTransformer(dataclasses.replace(tiny_config, vocab_size=320, max_seq_length=64)),
        TOKENIZER,
        max_new_tokens=9,
    )
    said: Sequence[str] = answers(session, "Hi", "Hi again")
    assert len(session.turns) == 2
    assert all(len(TOKENIZER.encode(text)) <= 9 * 4 for text in said)


@pytest.mark.parametrize("packed", [False, True])
def test_a_chat_reads_its_history_once(tiny_config: BitNetConfig, packed: bool) -> None:
    """The second question costs its own tokens, and its answer is that of somebody who reads all of it."""
    if packed and library.loaded().library is None:
        pytest.skip(library.describe())
    torch.manual_seed(1)
    model = BitNetTransformer(dataclasses.replace(tiny_config, vocab_size=320, max_seq_length=200))
    decoder: Any = pack(model, head="f32") if packed else model
    read: list[int] = []
    plainly = decoder.new_rows

    def counted(count: int, capacity: int | None = None) -> Any:
        rows = plainly(count, capacity)
        reads = rows.read

        def counting(texts: dict[int, list[int]]) -> Any:
            read.append(len(texts[0]))
            return reads(texts)

        rows.read = counting
        return rows

    decoder.new_rows = counted
    session = ChatSession(decoder, TOKENIZER, max_new_tokens=8)
    first, second = answers(session, "Who are you?", "And what is the moon?")
    after = [len(TOKENIZER.encode("human: And what is the moon?\nbitnut:")), *[1] * 8]
    assert len(read) == 16
    assert read[8] <= after[0] + 8 + 2  # the answer's text may be other tokens than it was made of
    assert read[8] < len(session._prompt("And what is the moon?")[0]) - 10

    fresh = ChatSession(decoder, TOKENIZER, max_new_tokens=8, turns=[Turn("Who are you?", first)])
    assert answers(fresh, "And what is the moon?") == [second]


def test_a_memory_forgets_what_is_no_longer_in_the_text(tiny_model: BitNetTransformer) -> None:
    memory = ReadText()
    for ids in ([1, 2, 3, 4, 5], [1, 2, 3, 9], [1, 2], [7], [1, 2]):
        kept = [new for new, _ in stream(tiny_model, ids, max_new_tokens=4, memory=memory)]
        alone = [new for new, _ in stream(tiny_model, ids, max_new_tokens=4)]
        assert kept == alone
        assert memory.ids == [*ids, *kept[:-1]]
