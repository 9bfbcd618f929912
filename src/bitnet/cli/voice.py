"""`bitnet voice prompts`: topics to prompts. `bitnet voice answers`: prompts to answers in a voice."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitnet.cli.flags import Action, JsonFlags, run_action
from bitnet.terminal import LiveLine
from bitnet.units import duration
from bitnet.voice.folder import counted
from bitnet.voice.teachers import DEFAULT, Teacher, TeacherOptions, open_teacher

USAGE = """usage: bitnet voice prompts [--topics FILE] [--teacher T] --out DIR
       bitnet voice answers --prompts DIR [--voice FILE] [--teacher T] [--pairs] --out DIR
T is rules (a built-in grammar), a Hugging Face causal model by name or folder, or http://HOST/v1 with
--model NAME
with --help after prompts or answers: all flags"""


@dataclass(frozen=True, kw_only=True)
class TeacherFlags(JsonFlags):
    """Who writes, and where to."""

    out: Path
    """Folder to write; repeat the command to continue after an interruption."""
    teacher: str = DEFAULT
    """rules, a Hugging Face causal model by name or folder, or an OpenAI-compatible http://HOST/v1."""
    model: str | None = None
    """Name of the endpoint's model."""
    batch_size: int = 8
    """Requests that go to a model together."""
    max_new_tokens: int = 192
    """Longest answer of a model, in its tokens."""
    temperature: float = 0.8
    """0 takes the likeliest token each time."""
    timeout_s: float = 120.0
    """Seconds to wait for an endpoint's answer."""
    device: str = "auto"
    """auto, cpu or cuda; for a Hugging Face model."""
    seed: int = 42
    """Seed of what is drawn."""


@dataclass(frozen=True, kw_only=True)
class PromptsFlags(TeacherFlags):
    """Write prompts about topics: several batches each, without repeats."""

    topics: Path | None = None
    """Text file with one topic a line; without it, 100 topics of this package."""
    batches: int = 6
    """Batches of each topic."""
    per_batch: int = 12
    """Prompts asked for in a batch."""


@dataclass(frozen=True, kw_only=True)
class AnswersFlags(TeacherFlags):
    """Answer prompts in a voice, and keep what passes the gates."""

    prompts: Path
    """Folder that `bitnet voice prompts` wrote."""
    voice: str = "bitnut"
    """A voice file, or a built-in voice."""
    attempts: int = 3
    """Tries for each prompt before it is given up."""
    pairs: bool = False
    """Also have each prompt answered plainly, for preference optimisation: in the voice against out of it."""


def main(arguments: Sequence[str]) -> int:
    """`prompts` or `answers`."""
    actions: dict[str, Action] = {"prompts": (PromptsFlags, prompts), "answers": (AnswersFlags, answers)}
    return run_action("voice", USAGE, actions, arguments)


def prompts(flags: PromptsFlags) -> int:
    """Prompts of every topic, and what was dropped."""
    from bitnet.voice.prompts import PromptOptions, make_prompts
    from bitnet.voice.topics import built_in_topics, read_topics
    from bitnet.voice.voices import built_in

    topics = built_in_topics() if flags.topics is None else read_topics(flags.topics)
    options = PromptOptions(batches=flags.batches, per_batch=flags.per_batch, seed=flags.seed)
    manifest = make_prompts(
        topics, built_in("human"), _teacher(flags), options, flags.out, progress("batches", "prompts")
    )
    lines = [
        f"{flags.out}: {manifest['prompts']:,} prompts about {manifest['topics']:,} topics, at least "
        f"{manifest['fewest_of_a_topic']:,} of each; {manifest['topics_held_out']:,} topics are held out",
        f"  dropped: {counted(manifest['dropped'])}",
    ]
    if manifest["topics_without_prompt"]:
        lines.append(f"  without any prompt: {', '.join(manifest['topics_without_prompt'])}")
    return _end(
        flags,
        manifest,
        [*lines, f"next: bitnet voice answers --prompts {flags.out} --teacher {flags.teacher} --out DIR"],
    )


def answers(flags: AnswersFlags) -> int:
    """Answers in the voice, pairs where asked for, and what the gates kept out."""
    from bitnet.voice.answers import AnswerOptions, make_answers
    from bitnet.voice.voices import find_voice

    voice = find_voice(flags.voice)
    options = AnswerOptions(attempts=flags.attempts, seed=flags.seed, pairs=flags.pairs)
    manifest = make_answers(
        flags.prompts, voice, _teacher(flags), options, flags.out, progress("prompts", "answers")
    )
    lines = [
        f"{flags.out}: {manifest['answers']:,} answers of {voice.name} to {manifest['prompts']:,} prompts on "
        f"{manifest['topics']:,} topics, at least {manifest['fewest_of_a_topic']:,} on each",
        f"  in the voice {manifest['in_voice']:.1%}, mention the topic {manifest['mention_topic']:.1%}, "
        f"share their first eight words {manifest['shared_beginnings']:.1%}",
        f"  attempts refused: {counted(manifest['refused_attempts'])}",
        f"  prompts given up after {manifest['attempts']} attempts: {manifest['given_up']:,}",
    ]
    if manifest["broken_prompts"]:
        lines.append(
            f"  broken lines of the prompts left out: {manifest['broken_prompts']:,} (first: "
            f"{manifest['first_broken']})"
        )
    if flags.pairs:
        lines.append(
            f"  preference pairs: {manifest['pair_count']:,}; "
            f"plain answers refused: {counted(manifest['plain_refused'])}"
        )
    return _end(flags, manifest, lines)


def _teacher(flags: TeacherFlags) -> Teacher:
    """The teacher, on its device. torch is loaded only for one that needs it."""
    device = "cpu"
    if flags.teacher != "rules" and not flags.teacher.startswith("http"):
        from bitnet.train.device import choose_device

        device = str(choose_device(flags.device))
    options = TeacherOptions(
        model=flags.model,
        batch_size=flags.batch_size,
        max_new_tokens=flags.max_new_tokens,
        temperature=flags.temperature,
        timeout_s=flags.timeout_s,
        device=device,
    )
    return open_teacher(flags.teacher, options)


def _end(flags: TeacherFlags, manifest: dict[str, Any], lines: list[str]) -> int:
    print("\n".join(lines), file=sys.stderr if flags.json else sys.stdout)
    if flags.json:
        print(json.dumps({"out": str(flags.out), **manifest}))
    return 0


def progress(pieces: str, kept: str) -> Callable[[int, int, int], None]:
    """Shows on standard error how many pieces are done, how much was kept, and the time to go."""
    line, started = LiveLine(), time.monotonic()
    first: int | None = None

    def show(done: int, total: int, count: int) -> None:
        nonlocal first
        first = done if first is None else first  # what an earlier, interrupted call had done

        def text() -> str:
            rate = (done - first) / (time.monotonic() - started)
            left = f"  about {duration((total - done) / rate)} to go" if rate > 0 else ""
            return f"{done:,} of {total:,} {pieces}  {count:,} {kept}{left}"

        line.show(text)

    return show
