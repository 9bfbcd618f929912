"""A run's model in packed form, read without torch: what `bitnet complete` starts with.

Importing torch takes longer than reading a model of 95M parameters. Only the newest checkpoint is tried, and
only the files that inference needs are hashed: whatever is wrong is left to trained_model.py, which names it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bitnet.engine.decoder import PackedDecoder, available_cores
from bitnet.engine.matrix import DenseFormat
from bitnet.engine.weights import default_head, engine_name, pack_weights
from bitnet.errors import CheckpointError, DataError
from bitnet.generate.decode import stream
from bitnet.generate.sampling import GREEDY, Sampling
from bitnet.nn.config import BitNetConfig, config_from_dict
from bitnet.run.checkpoint import load_arrays
from bitnet.run.layout import RunLayout, find_run
from bitnet.run.manifest import read_config, verify_run
from bitnet.text.tokenizer import Tokenizer, load_tokenizer

LINE = "line"


@dataclass(frozen=True)
class PackedRun:
    """A checkpoint with its tokenizer. engine: the kernel path, and the format of the head."""

    layout: RunLayout
    step: int
    decoder: PackedDecoder
    tokenizer: Tokenizer
    engine: str

    def stream(
        self, prompt: str, *, max_new_tokens: int = 64, sampling: Sampling = GREEDY, stop: str | None = LINE
    ) -> Iterator[str]:
        """The pieces of a continuation as they come, as TrainedModel.stream."""
        ids = self.tokenizer.encode(prompt)
        chosen = stream(self.decoder, ids, max_new_tokens=max_new_tokens, sampling=sampling)
        return pieces(self.tokenizer, (one for one, _ in chosen), stop)


def load_packed(run: str | Path, *, runs_dir: str | Path, head: DenseFormat | None = None) -> PackedRun:
    """A run's newest checkpoint, or the one named. Raises a BitnetError where that cannot be packed."""
    reference = find_run(str(run), Path(runs_dir))
    layout = reference.layout
    verify_run(layout)
    steps = layout.checkpoint_steps()
    step = steps[-1] if reference.step is None and steps else reference.step
    if step not in steps:
        raise CheckpointError(f"the run {layout.run_id} has no checkpoint of step {step}")

    config = model_config(layout)
    step, arrays = load_arrays(layout.checkpoint(step))
    form = head or default_head(config)
    weights = pack_weights(config, arrays, head=form, threads=available_cores())
    decoder = PackedDecoder(config, weights)
    return PackedRun(layout, step, decoder, fitting_tokenizer(layout, config), engine_name(config, form))


def pieces(tokenizer: Tokenizer, ids: Iterable[int], stop: str | None) -> Iterator[str]:
    """The text of new ids, piece by piece. Ends before `stop`, or at the end of text.

    stop: LINE is the end of the line for tasks whose examples are lines, nothing for running text.
    """
    new: list[int] = []
    shown = ""
    stop = _line_end(tokenizer) if stop == LINE else stop
    for chosen in ids:
        if chosen == tokenizer.eos_id:
            return
        new.append(chosen)
        text = tokenizer.decode(new)
        if stop is not None and stop in text:
            yield text[len(shown) : text.index(stop)]
            return
        if not text.endswith("\ufffd"):  # a character that is still incomplete
            yield text[len(shown) :]
            shown = text


def _line_end(tokenizer: Tokenizer) -> str | None:
    """The line break where the tokenizer knows just one task's characters: there an example is a line."""
    described = tokenizer.describe()
    one_task = described["tokenizer"] == "characters" and not described.get("tokenizer_unknown")
    return "\n" if one_task else None


def fitting_tokenizer(layout: RunLayout, config: BitNetConfig) -> Tokenizer:
    """The tokenizer of a run. Raises DataError where it has ids that the model has no row for."""
    tokenizer = tokenizer_of(layout)
    if tokenizer.vocab_size > config.vocab_size:
        raise DataError(
            f"{layout.tokenizer} has {tokenizer.vocab_size:,} entries, the model {config.vocab_size:,}; copy "
            "the folder back from the run it belongs to"
        )
    return tokenizer


def tokenizer_of(layout: RunLayout) -> Tokenizer:
    """The tokenizer of a run. Raises DataError where it is not the one that meta/config.json records."""
    tokenizer = load_tokenizer(layout.tokenizer)
    data = read_config(layout).get("data")
    expected = data.get("tokenizer_sha256") if isinstance(data, dict) else None
    found = tokenizer.describe()["tokenizer_sha256"]
    if expected is not None and expected != found:
        raise DataError(
            f"{layout.tokenizer} holds another tokenizer than the run was trained with (sha256 {found[:12]}, "
            f"recorded {str(expected)[:12]}); copy the folder back from the run it belongs to"
        )
    return tokenizer


def model_config(layout: RunLayout) -> BitNetConfig:
    """The shape of a run's model. Raises DataError when meta/config.json does not give it."""
    return config_from_dict(read_config(layout).get("model"), f"{layout.config}, section model,")
