"""What is measured at longer intervals: the frozen evaluation, the ternary statistics, the samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bitnet.data.stream import Batch
from bitnet.errors import CheckpointError, NotFiniteError
from bitnet.evaluate.loss import held_out_loss
from bitnet.generate.snapshot import MODES, snapshot, stable_seed
from bitnet.nn.packing import PER_BYTE, pack_ternary, unpack_ternary
from bitnet.nn.transformer import BitNetTransformer
from bitnet.run.metrics import LineWriter
from bitnet.train.config import TrainConfig
from bitnet.train.experiment import Task
from bitnet.train.loop import StepReport
from bitnet.train.observe.scalars import LossAverage
from bitnet.train.observe.ternary import ternary_codes, ternary_statistics

PROBE_ROWS = 16  # rows of the frozen evaluation set that activations are measured on


class Evaluation:
    """eval/eval_results.jsonl: loss on the frozen evaluation set, and the experiment's metrics on some cases.

    For a model whose logits are not finite, the line holds only the loss, as null.
    """

    def __init__(
        self,
        writer: LineWriter,
        model: BitNetTransformer,
        task: Task,
        config: TrainConfig,
        average: LossAverage,
        batches: Sequence[Batch],
    ) -> None:
        self.every, self.cases = config.eval_every, config.eval_cases
        self.writer, self.model, self.task, self.average = writer, model, task, average
        self.batches = batches

    def __call__(self, report: StepReport) -> None:
        held_out = held_out_loss(self.model, self.batches, self.task.tokenizer)
        loss, train_loss = held_out["nats_per_token"], self.average.value
        try:
            metrics = self.task.judge(self.model, self.cases)
        except NotFiniteError:
            metrics = {}
        self.writer.write(
            {
                "step": report.step,
                "eval_loss": loss,
                "train_loss": train_loss,
                "train_eval_gap": None if train_loss is None else train_loss - loss,
                "bits_per_byte": held_out["bits_per_byte"],
                **metrics,
            }
        )


class Probe:
    """metrics/quantization.jsonl: ternary shares, scales, flips and activation ranges of every layer."""

    def __init__(
        self, writer: LineWriter, model: BitNetTransformer, config: TrainConfig, batches: Sequence[Batch]
    ) -> None:
        self.every, self.writer, self.model = config.probe_every, writer, model
        rows = batches[0].input_ids[:PROBE_ROWS]
        self.input_ids = rows.to(model.device)
        self.codes = ternary_codes(model)

    def __call__(self, report: StepReport) -> None:
        codes = ternary_codes(self.model)
        self.writer.write(
            {"step": report.step, **ternary_statistics(self.model, codes, self.codes, self.input_ids)}
        )
        self.codes = codes

    def memory(self) -> dict[str, Tensor]:
        """The codes of the last probe, packed, so that flips are counted across a resume."""
        return {name: pack_ternary(_padded(codes)) for name, codes in self.codes.items()}

    def remember(self, memory: dict[str, Tensor]) -> None:
        """Restore what `memory` gave. Raises CheckpointError for that of another model."""
        for name, packed in memory.items():
            codes = self.codes.get(name)
            if codes is None or packed.shape != pack_ternary(_padded(codes)).shape:
                raise CheckpointError(
                    f"the memory of the probes has {name[:80]!r}, which is not of this model; use the run's "
                    "own checkpoint"
                )
            self.codes[name] = unpack_ternary(packed)[: codes.shape[0]].to(codes.device)


def _padded(codes: Tensor) -> Tensor:
    """The codes with rows of zeros added, so that each group of four rows fills a byte."""
    missing = -codes.shape[0] % PER_BYTE
    return torch.cat((codes, codes.new_zeros(missing, codes.shape[1]))) if missing else codes


class Samples:
    """samples/samples.jsonl: every fixed prompt in every mode, each with a seed of its own."""

    def __init__(self, writer: LineWriter, model: BitNetTransformer, task: Task, config: TrainConfig) -> None:
        self.every, self.writer, self.model, self.task = config.sample_every, writer, model, task
        self.rows: list[dict[str, Any]] = []
        """The samples that were drawn last, for the alarms."""

    def __call__(self, report: StepReport) -> None:
        self.rows = [
            snapshot(
                self.model,
                self.task.tokenizer,
                prompt,
                mode=mode,
                seed=stable_seed(index, report.step, mode),
                stop=self.task.end_mark,
            )
            for index, prompt in enumerate(self.task.prompts)
            for mode in MODES
        ]
        for row in self.rows:
            self.writer.write({"step": report.step, **row})
