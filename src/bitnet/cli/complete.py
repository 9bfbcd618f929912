"""`bitnet complete RUN PROMPT`: continue a prompt, or one prompt after another."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro
from tyro.conf import Positional

from bitnet.cli.flags import parse
from bitnet.cli.model import SamplingFlags, load_model, load_quickly
from bitnet.errors import BitnetError, ConfigError

if TYPE_CHECKING:
    from bitnet.generate.sampling import Sampling
    from bitnet.packed_run import PackedRun
    from bitnet.trained_model import TrainedModel

    Trained = TrainedModel | PackedRun


@dataclass(frozen=True, kw_only=True)
class CompleteFlags(SamplingFlags):
    """Continue a prompt, greedily unless a temperature is given."""

    prompt: Annotated[Positional[str | None], tyro.conf.arg(metavar="PROMPT")] = None
    """Text to continue."""
    interactive: bool = False
    """Ask for prompts until the end of input."""


def main(arguments: Sequence[str]) -> int:
    """Print the prompt with its continuation."""
    flags = parse(CompleteFlags, arguments, "complete")
    if (flags.prompt is None) == (not flags.interactive):
        raise ConfigError("give either a prompt or --interactive, as in: bitnet complete latest '25 + 17 = '")
    sampling = flags.sampling()
    trained = load_quickly(flags) or load_model(flags)
    if flags.interactive:
        return _ask(trained, flags, sampling)
    assert flags.prompt is not None
    completion = _say(trained, flags.prompt, flags, sampling, quiet=flags.json)
    if flags.json:
        result = {"run": trained.layout.run_id, "step": trained.step, "prompt": flags.prompt}
        print(json.dumps({**result, "completion": completion, "engine": trained.engine}))
    return 0


def _say(
    trained: Trained, prompt: str, flags: CompleteFlags, sampling: Sampling, *, quiet: bool = False
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


def _ask(trained: Trained, flags: CompleteFlags, sampling: Sampling) -> int:
    print(f"{trained.layout.run_id} at step {trained.step}. Type a beginning; an empty line or Ctrl-D ends.")
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
