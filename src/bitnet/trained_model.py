"""A trained model to talk to from Python: `bitnet.load("RUN").complete("25 + 17 = ")`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bitnet.engine.choose import Engine, choose_engine
from bitnet.engine.matrix import DenseFormat
from bitnet.errors import CheckpointError, DataError
from bitnet.generate.decode import generate, stream
from bitnet.generate.decoder import Decoder
from bitnet.generate.sampling import GREEDY, Sampling
from bitnet.nn.transformer import BitNetTransformer
from bitnet.packed_run import LINE, fitting_tokenizer, model_config, pieces
from bitnet.run.checkpoint import Checkpoint, check_size, load_checkpoint, load_weights, newest_good
from bitnet.run.layout import RunLayout, RunReference, find_run
from bitnet.run.manifest import verify_run
from bitnet.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class TrainedModel:
    """A checkpoint with its tokenizer. notes: what is wrong with newer checkpoints that were skipped."""

    layout: RunLayout
    step: int
    model: Decoder
    tokenizer: Tokenizer
    notes: tuple[str, ...] = ()
    engine: str = "torch"
    """What computes: `torch`, or `packed` with its kernel path and the format of its head."""
    engine_note: str = ""
    """Why it is not the packed one, where that is worth a line."""

    def complete(
        self, prompt: str, *, max_new_tokens: int = 64, sampling: Sampling = GREEDY, stop: str | None = LINE
    ) -> str:
        """The continuation of a prompt. Ends before `stop`, at the end of text, or after max_new_tokens.

        stop: by default the end of the line for tasks whose examples are lines, nothing for a model of
        running text.
        """
        return "".join(self.stream(prompt, max_new_tokens=max_new_tokens, sampling=sampling, stop=stop))

    def stream(
        self, prompt: str, *, max_new_tokens: int = 64, sampling: Sampling = GREEDY, stop: str | None = LINE
    ) -> Iterator[str]:
        """The pieces of `complete` as they come. Raises DataError for a prompt that cannot be encoded."""
        ids = self.tokenizer.encode(prompt)
        chosen = stream(self.model, ids, max_new_tokens=max_new_tokens, sampling=sampling)
        return pieces(self.tokenizer, (one for one, _ in chosen), stop)

    def generate(self, input_ids: Tensor, max_length: int = 50, sampling: Sampling = GREEDY) -> Tensor:
        """input_ids: int64 (B, T). Returns int64 (B, up to max_length), prompt included; ends early at
        </s>.
        """
        new = max_length - input_ids.shape[1]
        if new <= 0:
            raise DataError(
                f"max_length is {max_length} but the prompt already has {input_ids.shape[1]} tokens; raise "
                "max_length"
            )
        return generate(
            self.model,
            input_ids.to(self.model.device),
            max_new_tokens=new,
            sampling=sampling,
            stop_ids=(self.tokenizer.eos_id,),
        )


def load(
    run: str | Path,
    *,
    runs_dir: str | Path = "runs",
    device: str | torch.device = "cpu",
    engine: Engine = "auto",
    head: DenseFormat | None = None,
) -> TrainedModel:
    """A run's newest good checkpoint, or the one named. `run` is what the command line takes as RUN.

    engine: auto is the packed one on a CPU with compiled kernels; head: its format of the output head.
    """
    reference = find_run(str(run), Path(runs_dir))
    verify_run(reference.layout)
    notes: list[str] = []
    checkpoint = read_checkpoint(reference, notes)
    config = model_config(reference.layout)
    check_size(config, checkpoint)

    model = BitNetTransformer(config).to(torch.device(device))
    load_weights(model, checkpoint)
    model.eval()
    tokenizer = fitting_tokenizer(reference.layout, config)
    chosen = choose_engine(model, engine, head)
    return TrainedModel(
        reference.layout,
        checkpoint.step,
        chosen.model,
        tokenizer,
        tuple(notes),
        engine=chosen.name,
        engine_note=chosen.note,
    )


def read_checkpoint(reference: RunReference, notes: list[str]) -> Checkpoint:
    """The weights of the checkpoint that a reference names, or of the newest good one; damaged ones are
    noted.
    """
    layout = reference.layout
    steps = layout.checkpoint_steps()
    if not steps:
        raise CheckpointError(f"the run {layout.run_id} has no checkpoint yet; wait for its first one")
    if reference.step is not None:
        if reference.step not in steps:
            shown = ", ".join(str(step) for step in steps[-6:])
            raise CheckpointError(
                f"the run {layout.run_id} has no checkpoint of step {reference.step}; it has {shown}"
            )
        return load_checkpoint(layout.checkpoint(reference.step), optimizer=False)
    checkpoint = newest_good(layout, notes.append, optimizer=False)
    if checkpoint is None:
        raise CheckpointError(
            f"no checkpoint of {layout.run_id} is whole ({notes[-1]}); train the run again under another "
            "--run-id"
        )
    return checkpoint
