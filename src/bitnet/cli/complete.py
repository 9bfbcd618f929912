"""`bitnet complete RUN PROMPT`: continue a prompt, or one prompt after another."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tyro.conf import Positional

from bitnet.bounds import MOST_NEW_TOKENS, within
from bitnet.cli.flags import RunFlags, parse
from bitnet.errors import BitnetError, ConfigError

if TYPE_CHECKING:
    from bitnet.generate.sampling import Sampling
    from bitnet.trained_model import TrainedModel


@dataclass(frozen=True, kw_only=True)
class CompleteFlags(RunFlags):
    """Flags of `bitnet complete`. Greedy unless a temperature is given."""

    run: Positional[str]
    """Run id, directory, checkpoint, experiment name, or latest."""
    prompt: Positional[str | None] = None
    """Text to continue."""
    interactive: bool = False
    """Ask for prompts until the end of input."""
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float | None = None
    """Keep the most likely tokens that together hold this probability."""
    top_k: int | None = None
    """Keep this many of the most likely tokens."""
    max_new_tokens: int = 64
    """Tokens to add at most."""
    seed: int = 0
    """Seed of the sampling."""
    device: str = "auto"
    """auto, cpu or cuda."""


def main(arguments: Sequence[str]) -> int:
    """Print the prompt with its continuation."""
    flags = parse(CompleteFlags, arguments, "complete")
    if (flags.prompt is None) == (not flags.interactive):
        raise ConfigError("give either a prompt or --interactive, as in: bitnet complete latest '25 + 17 = '")
    within("--max-new-tokens", flags.max_new_tokens, 1, MOST_NEW_TOKENS)
    from bitnet.generate.sampling import Sampling
    from bitnet.train.device import choose_device
    from bitnet.trained_model import load

    sampling = Sampling(flags.temperature, flags.top_p, flags.top_k, flags.seed)
    trained = load(flags.run, runs_dir=flags.runs_dir, device=choose_device(flags.device))
    for note in trained.notes:
        print(f"passing over a damaged checkpoint: {note}", file=sys.stderr)
    if flags.interactive:
        return _ask(trained, flags, sampling)
    assert flags.prompt is not None
    completion = _say(trained, flags.prompt, flags, sampling, quiet=flags.json)
    if flags.json:
        print(
            json.dumps(
                {
                    "run": trained.layout.run_id,
                    "step": trained.step,
                    "prompt": flags.prompt,
                    "completion": completion,
                }
            )
        )
    return 0


def _say(
    trained: TrainedModel, prompt: str, flags: CompleteFlags, sampling: Sampling, *, quiet: bool = False
) -> str:
    pieces: list[str] = []
    stream = trained.stream(prompt, max_new_tokens=flags.max_new_tokens, sampling=sampling)
    for index, piece in enumerate(stream):
        if not quiet:
            print((prompt if index == 0 else "") + piece, end="", flush=True)
        pieces.append(piece)
    if not quiet:
        print(prompt if not pieces else "")
    return "".join(pieces)


def _ask(trained: TrainedModel, flags: CompleteFlags, sampling: Sampling) -> int:
    print(
        f"{trained.layout.run_id} at update {trained.step}. Type a beginning; an empty line or Ctrl-D ends."
    )
    while True:
        try:
            prompt = input("> ")
        except (EOFError, KeyboardInterrupt):
            print()
            return 0
        if not prompt:
            return 0
        try:
            _say(trained, prompt, flags, sampling)
        except BitnetError as error:
            print(f"  {error}")
