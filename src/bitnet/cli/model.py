"""What the verbs that use a trained model share: which run, on which device, and how tokens are drawn."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from tyro.conf import Positional

from bitnet.bounds import MOST_NEW_TOKENS, within
from bitnet.cli.flags import RunFlags
from bitnet.errors import BitnetError

if TYPE_CHECKING:
    from bitnet.generate.sampling import Sampling
    from bitnet.packed_run import PackedRun
    from bitnet.trained_model import TrainedModel

NVIDIA = Path("/dev/nvidiactl")  # there where a GPU could be used, which only torch can tell


@dataclass(frozen=True, kw_only=True)
class ModelFlags(RunFlags):
    """Which model, and where it computes."""

    run: Annotated[Positional[str], tyro.conf.arg(metavar="RUN")]
    """Run id, directory, checkpoint, experiment name, or latest."""
    device: str = "auto"
    """auto, cpu or cuda."""
    engine: Literal["auto", "packed", "torch"] = "auto"
    """What computes: the packed engine on a CPU (auto), always that, or PyTorch."""
    head: Literal["f32", "bf16", "int8", "int4"] | None = None
    """The packed engine's format of the output head; by default f32 for a small vocabulary, else int8."""


@dataclass(frozen=True, kw_only=True)
class SamplingFlags(ModelFlags):
    """How the next token is drawn."""

    temperature: float = 0.0
    """0 is greedy."""
    top_p: float | None = None
    """Keep the most likely tokens that together hold this probability."""
    top_k: int | None = None
    """Keep this many of the most likely tokens."""
    max_new_tokens: int = 64
    """Tokens to write at most."""
    seed: int = 0
    """Seed of the sampling."""

    def sampling(self) -> Sampling:
        """The settings as one value. Raises ConfigError for one out of range."""
        from bitnet.generate.sampling import Sampling

        within("--max-new-tokens", self.max_new_tokens, 1, MOST_NEW_TOKENS)
        return Sampling(self.temperature, self.top_p, self.top_k, self.seed)


def load_quickly(flags: SamplingFlags) -> PackedRun | None:
    """The model of a run without torch, for greedy text on a CPU; None where it cannot be had in this way."""
    from bitnet.packed_run import load_packed

    on_cpu = flags.device == "cpu" or (flags.device == "auto" and not NVIDIA.exists())
    if flags.engine == "torch" or not on_cpu or flags.temperature != 0:
        return None
    try:
        return load_packed(flags.run, runs_dir=flags.runs_dir, head=flags.head)
    except (BitnetError, ValueError):  # load_model finds it again, and does without, or names it
        return None


def load_model(flags: ModelFlags) -> TrainedModel:
    """The model of a run. Names each damaged checkpoint that was skipped on standard error."""
    from bitnet.train.device import choose_device
    from bitnet.trained_model import load

    trained = load(
        flags.run,
        runs_dir=flags.runs_dir,
        device=choose_device(flags.device),
        engine=flags.engine,
        head=flags.head,
    )
    for note in trained.notes:
        print(f"skipping a damaged checkpoint: {note}", file=sys.stderr)
    if trained.engine_note:
        print(trained.engine_note, file=sys.stderr)
    return trained
