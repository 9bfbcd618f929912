"""`bitnet train NAME --from RUN`: the model, weights and tokenizer of another run begin a new one."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bitnet.cli.foreign import refuse_foreign_places
from bitnet.cli.registry import config_of_run, experiment_names
from bitnet.run.manifest import read_config

if TYPE_CHECKING:
    from bitnet.run.layout import RunLayout
    from bitnet.train.config import RunConfig


def started_from(
    base: RunConfig, word: str, runs_dir: Path, file: Path | None, *, trust: bool = False
) -> RunConfig:
    """The configuration with the model of a run, beginning with its newest good weights.

    file: of the user's own experiment, in case the run is of it. trust: the text that somebody else's run was
    trained on may be read.
    """
    from bitnet.packed_run import model_config
    from bitnet.run.layout import RunLayout, find_run
    from bitnet.train.data_config import Origin
    from bitnet.trained_model import read_checkpoint

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
    origin = Origin(str(layout.tokenizer), lambda: _text_of(layout, file, trust))
    return dataclasses.replace(base, model=model, train=train, data=base.data.begun_from(origin))


def _text_of(layout: RunLayout, file: Path | None, trust: bool) -> str:
    """The folder of the token shards that a run was trained on; "" for a run that reads none."""
    ours = read_config(layout).get("experiment") in experiment_names()
    trained, _, config = config_of_run(layout, None if ours else file)
    refuse_foreign_places(layout, config, trust=trust)
    return trained.ready(config, None) if trained.ready else ""
