"""The model as the loop calls it: compiled where that was asked for and works, else as it is."""

from __future__ import annotations

import numpy as np
import torch

from bitnet.train.loop import Forward, autocast
from bitnet.train.machine import wants_compile
from bitnet.train.session import Session


def forward_of(session: Session) -> Forward:
    """The model, compiled where asked for and possible; a failure to compile is said and training goes on without."""
    config, machine, model = session.config.train, session.machine, session.model
    if not wants_compile(config, machine.device):
        return model
    session.say("compiling the model (torch.compile); the first update waits for it, about a minute on a CPU")
    compiled: Forward = torch.compile(model)
    try:
        rows = session.task.source.rows(np.arange(config.batch_size, dtype=np.int64)).to(machine.device)
        with autocast(machine.device, machine.bf16):
            compiled(rows.input_ids, **rows.context()).float().sum().backward()  # type: ignore[no-untyped-call]
    except Exception as error:  # noqa: BLE001 - compilers fail in many ways, and none of them is a reason not to train
        session.say(f"torch.compile failed ({type(error).__name__}: {str(error).splitlines()[0]}); going on without it")
        torch.compiler.reset()
        return model
    finally:
        session.optimizers.zero_grad()
    return compiled
