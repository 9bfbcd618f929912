"""The data settings of fine-tuning: conversations, and the run that learns them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from bitnet.bounds import MOST_ROWS, within
from bitnet.errors import ConfigError, NotFoundError
from bitnet.text.chat import SPEAKER
from bitnet.train.data_config import DataConfig, Origin, ShortFlag
from bitnet.voice.voices import VOICE_FILE, find_voice


@dataclass(frozen=True, kw_only=True)
class ConversationData(DataConfig):
    """Conversations, and what the base run was trained on. --from and --data fill most of it in."""

    conversations: str = ""
    """Folder of `bitnet voice answers`, or a file of JSON lines."""
    speaker: str = SPEAKER
    """The name before the answers; `bitnet chat` reads it here."""
    voice: str = SPEAKER
    """A built-in voice or a voice file, whose signs the answers are judged by."""
    tokenizer: str = ""
    """Folder of the tokenizer of the run that is begun from."""
    other: str = ""
    """Folder of the token shards that it was trained on."""
    other_share: float = 0.1
    """Share of rows that are windows of that text."""
    chained_share: float = 0.3
    """Share of conversations that another one on the same topic follows as a second turn."""
    eval_conversations: int = 64
    """Held-out conversations that the loss is measured on during training."""
    judged_prompts: int = 200
    answer_tokens: int = 128
    """Tokens within which an answer has to end."""

    outside: ClassVar[tuple[str, ...]] = ("conversations", "voice", "tokenizer", "other")
    short_flags: ClassVar[tuple[ShortFlag, ...]] = (
        ShortFlag(
            "data",
            "conversations",
            "Folder of `bitnet voice answers`, or a file of conversations as JSON lines.",
        ),
    )

    def __post_init__(self) -> None:
        for name in ("eval_conversations", "judged_prompts", "answer_tokens"):
            within(f"data.{name}", getattr(self, name), 1, MOST_ROWS)
        if not 0 <= self.chained_share <= 1:
            raise ConfigError(f"data.chained_share is {self.chained_share}; it must be between 0 and 1")
        if not 0 <= self.other_share < 1:
            raise ConfigError(f"data.other_share is {self.other_share}; it must be at least 0 and below 1")

    def with_flags(self, given: Mapping[str, Any]) -> Self:
        """With the voice that a folder of conversations is in. Raises NotFoundError where there is no such
        folder or file.
        """
        if "conversations" not in given:
            return super().with_flags(given)
        word = given["conversations"]
        folder = Path(word).resolve()
        if not folder.exists():
            raise NotFoundError(
                f"there is no {word}; make it with: bitnet voice answers --prompts DIR --out {word}"
            )

        data = dataclasses.replace(self, conversations=str(folder), dataset=folder.name)
        voice = folder / VOICE_FILE
        if not voice.is_file():
            return data
        return dataclasses.replace(data, voice=str(voice.resolve()), speaker=find_voice(str(voice)).name)

    def begun_from(self, origin: Origin) -> Self:
        """The run gives its tokenizer, and the text that it was trained on."""
        return dataclasses.replace(self, tokenizer=origin.tokenizer, other=origin.text())
