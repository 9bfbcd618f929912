"""How a run continues from its newest good checkpoint, and what a new run writes before its first update."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bitnet.errors import CheckpointError
from bitnet.files import write_json
from bitnet.run.checkpoint import Checkpoint, load_checkpoint, load_weights, newest_good
from bitnet.run.frozen import save_frozen_set
from bitnet.run.metrics import cut_back
from bitnet.run.provenance import provenance
from bitnet.run.random_state import restore_random_states
from bitnet.train.machine import wants_compile
from bitnet.train.session import Session


def resume(session: Session) -> Checkpoint | None:
    """Continue from the newest good checkpoint, if there is any."""
    layout, say = session.layout, session.say
    checkpoint = newest_good(layout, lambda problem: say(f"passing over a damaged checkpoint: {problem}"))
    if checkpoint is None:
        if layout.checkpoint_steps():
            raise CheckpointError(f"no checkpoint of {layout.run_id} is whole; begin anew under another --run-id (nothing was deleted)")
        return None
    restore(session, checkpoint)
    return checkpoint


def restore(session: Session, checkpoint: Checkpoint) -> None:
    """Put weights, optimizer, random states and metric lines where the checkpoint has them."""
    load_weights(session.model, checkpoint)
    session.optimizers.zero_grad()
    session.optimizers.load_state_tensors(checkpoint.optimizer)
    restore_random_states(checkpoint.state["rng_states"])
    for path in session.layout.line_files():
        cut_back(path, checkpoint.step)


def begin(session: Session, described: dict[str, Any]) -> Checkpoint:
    """Write what a new run starts with."""
    layout, task, config, machine = session.layout, session.task, session.config, session.machine
    if config.train.start_from is not None:
        load_weights(session.model, load_checkpoint(Path(config.train.start_from), optimizer=False))
        session.say(f"beginning with the weights of {config.train.start_from}")
    for path in layout.line_files():
        cut_back(path, 0)
    layout.roll_backs.unlink(missing_ok=True)
    facts = provenance(
        layout.run_id,
        config.train.seed,
        device=str(machine.device),
        product=machine.product,
        gradient_dtype=str(machine.gradient_dtype).removeprefix("torch."),
        compiled=wants_compile(config.train, machine.device),
    )
    task.tokenizer.save(layout.tokenizer)
    write_json(layout.provenance, facts)
    frozen = task.frozen_evaluation()
    rows = config.train.total_steps * config.train.batch_size * config.train.grad_accumulation_steps
    evaluation = {
        "expected_repetition_rate": task.source.epochs(rows),
        "evaluation_sequences": sum(len(batch.input_ids) for batch in frozen),
        "evaluation_sha256": save_frozen_set(layout, [batch.tensors() for batch in frozen]),
    }
    write_json(layout.fingerprint, {**task.source.fingerprint(), "tokenizer_vocab_size": task.tokenizer.vocab_size, **evaluation})
    write_json(layout.config, described)  # last: a folder is a run once it has this file
    return Checkpoint(0, {}, {}, {}, {})
