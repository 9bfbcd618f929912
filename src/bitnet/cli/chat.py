"""`bitnet chat RUN`: talk to a fine-tuned model; a base model continues plainly.

A run whose configuration names a speaker (data.speaker, which fine-tuning writes) is talked to in its
template. Another run has never seen a conversation: what is typed is continued, and nothing is remembered.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from bitnet.cli.flags import parse
from bitnet.cli.model import SamplingFlags, load_model
from bitnet.errors import BitnetError, ConfigError, did_you_mean

if TYPE_CHECKING:
    from bitnet.generate.sampling import Sampling
    from bitnet.generate.session import ChatSession
    from bitnet.trained_model import TrainedModel

HELP = '/clear forget   /system TEXT   /temperature T   /quit   """ begins and ends several lines'
COMMANDS = ("/clear", "/help", "/quit", "/system", "/temperature")
FENCE = '"""'


@dataclass(frozen=True, kw_only=True)
class ChatFlags(SamplingFlags):
    """Talk to a fine-tuned model; a base model continues what is typed."""

    prompt: Annotated[str | None, tyro.conf.arg(aliases=["-p"])] = None
    """Say this, print the answer and end."""
    system: str = ""
    """A text before the first turn."""
    temperature: float = 0.7
    top_p: float | None = 0.95
    max_new_tokens: int = 256


@dataclass
class Sitting:
    """One sitting: the model, how it is drawn from, and the conversation where there is one."""

    trained: TrainedModel
    session: ChatSession | None
    sampling: Sampling
    max_new_tokens: int

    def reply(self, text: str) -> Generator[str, None, None]:
        """The pieces of an answer; each answer is drawn with a seed of its own."""
        if self.session is None:
            yield from self.trained.stream(text, max_new_tokens=self.max_new_tokens, sampling=self.sampling)
        else:
            yield from self.session.reply(text, self.sampling)
        self.sampling = dataclasses.replace(self.sampling, seed=self.sampling.seed + 1)


class LeaveChat(Exception):
    """The person wants to stop."""


def main(arguments: Sequence[str]) -> int:
    """Talk until the person leaves, or answer once."""
    flags = parse(ChatFlags, arguments, "chat")
    if flags.json and flags.prompt is None:
        raise ConfigError("--json needs one prompt, as in: bitnet chat latest -p 'What is the moon?' --json")
    sitting = open_sitting(flags)
    if flags.prompt is not None:
        return _once(sitting, flags, flags.prompt)
    _talk(sitting)
    return 0


def open_sitting(flags: ChatFlags) -> Sitting:
    """The model, with a session where it was taught to converse."""
    from bitnet.generate.session import ChatSession
    from bitnet.run.manifest import read_config

    sampling, trained = flags.sampling(), load_model(flags)
    speaker = read_config(trained.layout).get("data", {}).get("speaker")
    session = None
    if speaker is not None:
        session = ChatSession(
            trained.model, trained.tokenizer, str(speaker), flags.system, flags.max_new_tokens
        )
    elif flags.system:
        raise ConfigError(
            f"{trained.layout.run_id} was not fine-tuned to converse, so --system means nothing to it; leave "
            "it out"
        )
    return Sitting(trained, session, sampling, flags.max_new_tokens)


def _once(sitting: Sitting, flags: ChatFlags, prompt: str) -> int:
    """Answer one prompt."""
    answer = "".join(_shown(sitting, prompt, quiet=flags.json))
    if flags.json:
        trained, session = sitting.trained, sitting.session
        result = {"run": trained.layout.run_id, "step": trained.step, "prompt": prompt, "answer": answer}
        print(
            json.dumps(
                {**result, "ended": None if session is None else session.ended, "engine": trained.engine}
            )
        )
    return 0


def _shown(sitting: Sitting, text: str, *, quiet: bool = False) -> list[str]:
    """Print an answer as it comes. Returns its pieces."""
    pieces: list[str] = []
    with contextlib.closing(sitting.reply(text)) as stream:
        for piece in stream:
            if not pieces and sitting.session is not None and not quiet:
                _say_forgotten(sitting.session)
            pieces.append(piece)
            if not quiet:
                print(piece, end="", flush=True)
    if not quiet:
        print()
    return pieces


def _say_forgotten(session: ChatSession) -> None:
    if session.forgotten:
        one = session.forgotten == 1
        turns, counts = ("turn does", "counts") if one else (f"{session.forgotten} turns do", "count")
        context = session.model.config.max_seq_length
        print(
            f"(the oldest {turns} not fit the {context:,} tokens that the model reads, and no longer "
            f"{counts})",
            file=sys.stderr,
        )


def _talk(sitting: Sitting) -> None:
    """Turn after turn. Ctrl-C and Ctrl-D leave."""
    trained, session = sitting.trained, sitting.session
    who = f"{trained.layout.run_id} at step {trained.step}"
    if session is None:
        print(f"{who} is a base model: it continues what you type and remembers nothing.\n{HELP}")
    else:
        print(f"{session.speaker}: {who}.\n{HELP}")
    try:
        while True:
            text = _message()
            if text.startswith("/"):
                _command(sitting, text)
            elif text:
                _answer(sitting, text)
    except (LeaveChat, EOFError, KeyboardInterrupt):
        print()


def _answer(sitting: Sitting, text: str) -> None:
    print(text if sitting.session is None else f"{sitting.session.speaker}: ", end="", flush=True)
    try:
        _shown(sitting, text)
    except BitnetError as error:
        print(f"\n  {error}")


def _message() -> str:
    """What the person says: a line, or everything between two fences."""
    line = input("> ")
    if not line.lstrip().startswith(FENCE):
        return line.strip()
    lines = [line.lstrip().removeprefix(FENCE)]
    while FENCE not in lines[-1]:
        lines.append(input("... "))
    lines[-1] = lines[-1].split(FENCE)[0]
    return "\n".join(lines).strip()


def _command(sitting: Sitting, text: str) -> None:
    """Something for this program, not for the model."""
    word, _, rest = text.partition(" ")
    if word == "/quit":
        raise LeaveChat
    if word not in COMMANDS:
        print(f"  there is no {word}.{did_you_mean(word, COMMANDS)}")
    elif word == "/temperature":
        _set_temperature(sitting, rest)
    elif word == "/help":
        print(f"  {HELP}")
    elif sitting.session is None:
        print("  a base model has no conversation")
    elif word == "/clear":
        sitting.session.clear()
        print("  forgotten")
    else:
        sitting.session.system = rest.strip()
        print("  system text set" if rest.strip() else "  system text removed")


def _set_temperature(sitting: Sitting, word: str) -> None:
    try:
        sitting.sampling = dataclasses.replace(sitting.sampling, temperature=float(word))
    except (ValueError, BitnetError):
        print(
            f"  the temperature is {sitting.sampling.temperature:g}; say /temperature 0 (greedy) or a "
            "positive number"
        )
    else:
        print(f"  temperature {sitting.sampling.temperature:g}")
