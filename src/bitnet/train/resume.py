"""How a run continues from its newest good checkpoint, and what a new run writes before its first update."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitnet.data.stream import Batch, RowSource
from bitnet.errors import CheckpointError, DataError
from bitnet.files import json_text, read_json, write_atomic, write_json
from bitnet.run.checkpoint import Checkpoint, load_checkpoint, load_weights, newest_good
from bitnet.run.eval_set import load_frozen_set, save_frozen_set
from bitnet.run.layout import RunLayout
from bitnet.run.manifest import verify_run, write_manifest
from bitnet.run.metrics import cut_back, cut_to, tail, verify_extent
from bitnet.run.provenance import provenance
from bitnet.run.random_state import restore_random_states
from bitnet.run.sessions import record_session
from bitnet.train.config import TrainConfig
from bitnet.train.session import Session


def resume(session: Session) -> Checkpoint | None:
    """Continue from the newest good checkpoint, if there is any."""
    layout, say = session.layout, session.say
    checkpoint = newest_good(layout, lambda problem: say(f"passing over a damaged checkpoint: {problem}"))
    if checkpoint is None:
        if layout.checkpoint_steps():
            raise CheckpointError(
                f"no checkpoint of {layout.run_id} is whole; begin anew under another --run-id (nothing was "
                "deleted)"
            )
        if tail(layout.scalars).rows:
            raise CheckpointError(
                f"{layout.root} has metrics but no checkpoint; restore {layout.checkpoints}, or begin anew "
                "under another --run-id"
            )
        return None
    verify_run(layout)
    check_data(session)
    restore(session, checkpoint)
    changed = record_session(layout, checkpoint.step, session_facts(session))
    if changed:
        say(
            f"resumed under other conditions ({'; '.join(changed)}): from here on the last digits may differ "
            "from those of an unbroken run"
        )
    return checkpoint


def restore(session: Session, checkpoint: Checkpoint) -> None:
    """Put weights, optimizer, random states and metric lines where the checkpoint has them."""
    load_weights(session.model, checkpoint)
    session.optimizers.zero_grad()
    session.optimizers.load_state_tensors(checkpoint.optimizer)
    try:
        restore_random_states(checkpoint.state["rng_states"])
        stored = checkpoint.state.get("loss_scale")
        if session.scaling is not None and stored is not None:
            session.scaling.load(stored)
    except (LookupError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise CheckpointError(
            f"the random states of step {checkpoint.step} cannot be restored ({type(error).__name__}: "
            f"{error}); delete that checkpoint to "
            "continue from the one before"
        ) from None
    cut_lines(session.layout, checkpoint)


def check_data(session: Session) -> None:
    """Raise DataError where the data is not what the run began with: other rows to train on, or other
    held-out ones.
    """
    layout, task = session.layout, session.task
    stored = _hashes(read_json(layout.fingerprint))
    now = _hashes(task.source.fingerprint())
    changed = sorted(key for key in stored.keys() & now.keys() if stored[key] != now[key])
    frozen = [Batch(**tensors) for tensors in load_frozen_set(layout)]
    held_out = task.frozen_evaluation()
    if len(frozen) != len(held_out) or not all(
        one.equals(other) for one, other in zip(frozen, held_out, strict=True)
    ):
        changed.append("the held-out rows")
    if changed:
        raise DataError(
            f"the data of {layout.run_id} is not what it began with ({', '.join(changed)} differ from "
            f"{layout.fingerprint}); "
            "restore the files that it was made from, or begin another run under another --run-id"
        )


def _hashes(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """What a fingerprint says about the content of the data; names, counts and rates may be told otherwise by
    a later version.
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= _hashes(value, f"{prefix}{key}.")
        elif key.endswith("sha256") and key != "evaluation_sha256":  # load_frozen_set compares that one
            found[f"{prefix}{key}"] = value
    return found


def cut_lines(layout: RunLayout, checkpoint: Checkpoint) -> None:
    """Cut every file of lines back to the checkpoint, once all of them are found to be what was written up to
    it.
    """
    extents = checkpoint.state.get("lines")
    if extents is None:  # a checkpoint made before they were recorded
        for path in layout.line_files():
            cut_back(path, checkpoint.step)
        return
    names = {path.relative_to(layout.root).as_posix(): path for path in layout.line_files()}
    missing = sorted(names.keys() - extents.keys())
    if missing:
        raise CheckpointError(
            f"the checkpoint of step {checkpoint.step} does not know {missing[0]}; delete it to continue "
            "from the one before"
        )
    files = {path: extents[name] for name, path in names.items()}
    for path, extent in files.items():
        verify_extent(path, extent)
    for path, extent in files.items():
        cut_to(path, extent)


def session_facts(session: Session) -> dict[str, Any]:
    """What decides a result beside the configuration, as provenance and sessions record it."""
    config, machine = session.config, session.machine
    return provenance(
        session.layout.run_id,
        config.train.seed,
        device=str(machine.device),
        product=session.paths.product,
        gradient_dtype=str(machine.gradient_dtype).removeprefix("torch."),
        compiled=session.paths.compiled,
    )


def dataset_facts(source: RowSource, train: TrainConfig) -> dict[str, Any]:
    """The fingerprint with the plan's names in the plan's meanings, which are about the whole corpus, and
    beside them our own, which are about the tokens that were prepared from it. For a generated task, which is
    all there is of it, both are the same.
    """
    facts = source.fingerprint()
    epochs = source.epochs(train.total_steps * train.batch_size * train.grad_accumulation_steps)
    ours = {
        "prepared_tokens": facts["dataset_size_tokens"],
        "row_order": facts["sampling_strategy"],
        "epochs": epochs,
    }
    if "corpus_size" not in facts:
        return {**facts, **ours, "expected_repetition_rate": epochs}
    tokens, size, sampling = (facts.pop(name) for name in ("corpus_tokens", "corpus_size", "corpus_sampling"))
    plan = {"dataset_size_tokens": size, "sampling_strategy": sampling}
    return {
        **facts,
        **plan,
        **ours,
        "expected_repetition_rate": train.total_tokens / tokens if tokens else None,
    }


def begin(session: Session, described: dict[str, Any]) -> Checkpoint:
    """Write what a new run starts with."""
    layout, task, config = session.layout, session.task, session.config
    if config.train.start_from is not None:
        load_weights(session.model, load_checkpoint(Path(config.train.start_from), optimizer=False))
        session.say(f"beginning with the weights of {config.train.start_from}")
    for path in layout.line_files():
        cut_back(path, 0)
    for path in (layout.roll_backs, layout.sessions):
        path.unlink(missing_ok=True)
    facts = session_facts(session)
    task.tokenizer.save(layout.tokenizer)
    write_json(layout.provenance, facts)
    frozen = task.frozen_evaluation()
    evaluation = {
        "evaluation_sequences": sum(len(batch.input_ids) for batch in frozen),
        "evaluation_sha256": save_frozen_set(layout, [batch.tensors() for batch in frozen]),
    }
    described_data = dataset_facts(task.source, config.train)
    write_json(
        layout.fingerprint,
        {**described_data, "tokenizer_vocab_size": task.tokenizer.vocab_size, **evaluation},
    )
    text = json_text(described)
    write_manifest(layout, text)
    record_session(layout, 0, facts)
    write_atomic(layout.config, text)  # last: a folder is a run once it has this file
    return Checkpoint(0, {}, {}, {}, {})
