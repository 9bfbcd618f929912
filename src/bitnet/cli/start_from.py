"""`--from RUN`: another run's model, weights and tokenizer as the beginning of a new one, and `--data` for
conversations.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitnet.cli.foreign import refuse_foreign_places
from bitnet.cli.registry import config_of_run
from bitnet.errors import NotFoundError

if TYPE_CHECKING:
    from bitnet.run.layout import RunLayout
    from bitnet.train.config import DataConfig, RunConfig


def started_from(base: RunConfig, word: str, runs_dir: Path, *, trust: bool = False) -> RunConfig:
    """The configuration with the model of a run, beginning with its newest good weights. trust: it may name
    the text it was trained on.
    """
    from bitnet.run.layout import RunLayout, find_run
    from bitnet.trained_model import model_config, read_checkpoint

    reference = find_run(word, runs_dir)
    layout = RunLayout(reference.layout.root.resolve())
    notes: list[str] = []
    step = read_checkpoint(reference, notes).step
    for note in notes:
        print(f"skipping a damaged checkpoint: {note}", file=sys.stderr)
    model = model_config(layout)
    train = dataclasses.replace(
        base.train,
        start_from=str(layout.checkpoint(step)),
        seq_len=min(base.train.seq_len, model.max_seq_length),
    )
    return dataclasses.replace(base, model=model, train=train, data=_data_of(base.data, layout, trust))


def _data_of(data: DataConfig, layout: RunLayout, trust: bool) -> DataConfig:
    """The tokenizer of the run; for conversations also the text that it was trained on."""
    from bitnet.experiments.bitnut_sft import ConversationData
    from bitnet.experiments.real_text import TextData

    tokenizer = str(layout.tokenizer)
    if isinstance(data, TextData):
        return dataclasses.replace(data, tokenizer=tokenizer)
    if isinstance(data, ConversationData):
        return dataclasses.replace(data, tokenizer=tokenizer, other=_text_of(layout, trust))
    return data


def _text_of(layout: RunLayout, trust: bool) -> str:
    """The folder of the token shards that a run was trained on; nothing for a run of another kind."""
    from bitnet.experiments.bitnut import BitNutData, ready_parts
    from bitnet.experiments.bitnut_sft import ConversationData
    from bitnet.experiments.real_text import TextData, ready_shards

    config = config_of_run(layout)[2]
    refuse_foreign_places(layout, config, trust=trust)
    if isinstance(config.data, ConversationData):
        return config.data.other
    if isinstance(config.data, BitNutData):
        return str(ready_parts(config)[1][0].folder.resolve())
    return str(ready_shards(config)[1].folder.resolve()) if isinstance(config.data, TextData) else ""


def with_conversations(data: Any, place: str) -> Any:
    """The data settings with a folder or file of conversations; a folder has the voice that they are in."""
    path = Path(place)
    if not path.exists():
        raise NotFoundError(
            f"there is no {place}; make it with: bitnet voice answers --prompts DIR --out {place}"
        )
    from bitnet.voice.answers import VOICE_FILE
    from bitnet.voice.voices import find_voice

    voice = path / VOICE_FILE
    of_voice = (
        {"voice": str(voice.resolve()), "speaker": find_voice(str(voice)).name} if voice.is_file() else {}
    )
    return dataclasses.replace(
        data, conversations=str(path.resolve()), dataset=path.resolve().name, **of_voice
    )
