"""What a new run writes before its first update."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bitnet.data.stream import RowSource
from bitnet.files import json_text, write_atomic, write_json
from bitnet.run.checkpoint import Checkpoint, load_checkpoint, load_weights
from bitnet.run.eval_set import save_frozen_set
from bitnet.run.manifest import write_manifest
from bitnet.run.metrics import cut_back
from bitnet.run.sessions import record_session
from bitnet.train.config import TrainConfig
from bitnet.train.session import Session


def begin(session: Session, described: dict[str, Any]) -> Checkpoint:
    """Write what a new run starts with, and return its state at step 0. described: its meta/config.json."""
    layout, task, config = session.layout, session.task, session.config
    if config.train.start_from is not None:
        load_weights(session.model, load_checkpoint(Path(config.train.start_from), optimizer=False))
        session.say(f"beginning with the weights of {config.train.start_from}")

    # A process that was killed while it began this run may have left lines behind.
    for path in layout.line_files():
        cut_back(path, 0)
    for path in (layout.roll_backs, layout.sessions):
        path.unlink(missing_ok=True)

    facts = session.facts()
    task.tokenizer.save(layout.tokenizer)
    write_json(layout.provenance, facts)
    write_json(layout.fingerprint, _fingerprint(session))

    # The configuration is written last: a folder is a run once it has this file.
    text = json_text(described)
    write_manifest(layout, text)
    record_session(layout, 0, facts)
    write_atomic(layout.config, text)
    return Checkpoint(0, {}, {}, {}, {})


def _fingerprint(session: Session) -> dict[str, Any]:
    """meta/dataset_fingerprint.json. Writes the frozen evaluation set, whose hash it holds."""
    eval_set = session.task.frozen_evaluation()
    return {
        **dataset_facts(session.task.source, session.config.train),
        "tokenizer_vocab_size": session.task.tokenizer.vocab_size,
        "evaluation_sequences": sum(len(batch.input_ids) for batch in eval_set),
        "evaluation_sha256": save_frozen_set(session.layout, [batch.tensors() for batch in eval_set]),
    }


def dataset_facts(source: RowSource, train: TrainConfig) -> dict[str, Any]:
    """The plan's facts about the whole corpus, and ours about the tokens that were prepared from it.

    For a generated task the prepared tokens are the whole corpus, so both are the same.
    """
    facts = source.fingerprint()
    epochs = source.epochs(train.total_steps * train.batch_size * train.grad_accumulation_steps)
    prepared = {
        "prepared_tokens": facts["dataset_size_tokens"],
        "row_order": facts["sampling_strategy"],
        "epochs": epochs,
    }
    if "corpus_size" not in facts:
        return {**facts, **prepared, "expected_repetition_rate": epochs}

    tokens, size, sampling = (facts.pop(name) for name in ("corpus_tokens", "corpus_size", "corpus_sampling"))
    return {
        **facts,
        "dataset_size_tokens": size,
        "sampling_strategy": sampling,
        **prepared,
        "expected_repetition_rate": train.total_tokens / tokens if tokens else None,
    }
