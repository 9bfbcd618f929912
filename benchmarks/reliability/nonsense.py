"""Commands and hostile values for the flags of every verb: what the trials of fuzz.py draw from."""

from __future__ import annotations

import contextlib
import io
import os
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

TINY = """
    --device cpu --model.hidden-size 32 --model.num-layers 1 --model.num-heads 2 --model.num-kv-heads 1
    --model.ffn-hidden-size 64 --batch-size 4 --train.eval-cases 4 --train.compile off
""".split()
_OF_TEXT = """
    --variant quick --data stories.txt --num-steps 1 --model.vocab-size 300 --seq-len 32 --cache-dir cache
    --data.judged-prompts 4
""".split()
TEXT = [*TINY, *_OF_TEXT]
TASK = [*TINY, "--variant", "quick", "--num-steps", "1", "--data.max-operand", "9"]
BASES: dict[str, list[str]] = {
    "experiments": [],
    "train arithmetic": TASK,
    "train tinystories": [*TEXT, "--dry-run"],
    "train json_records": [*TINY, "--variant", "quick", "--dry-run"],
    "train bitnut_sft": ["--variant", "quick", "--dry-run"],
    "evaluate tiny": ["--show", "1"],
    "complete tiny": ["1 + 1 = ", "--max-new-tokens", "4"],
    "chat tiny": ["-p", "1 + 1 = ", "--max-new-tokens", "4"],
    "play tiny": [],
    "runs": [],
    "status tiny": [],
    "plot tiny": [],
    "diagnose nothing": [],
    "compare tiny twin": [],
    "report tiny": [],
    "tokenizer train": "--data stories.txt --vocab-size 300 --out new-tokenizer".split(),
    "tokenizer inspect": ["tokenizer", "--text", "a dog"],
    "prepare arithmetic": "--out lines.txt --count 10".split(),
    "prepare": "--data stories.txt --tokenizer tokenizer --out shards --processes 1".split(),
    "voice prompts": "--teacher rules --topics topics.txt --batches 1 --per-batch 3 --out prompts".split(),
    "voice answers": "--teacher rules --prompts written --out answers".split(),
    "cost arithmetic": [],
    "cost 1B": [],
    "machine": [],
}
"""What each command needs beside the flag under trial to finish in a moment, and to succeed if that flag is
harmless."""
NONSENSE = [
    *"-1 -9223372036854775808 9223372036854775807".split(),
    "1" + "0" * 400,
    *"nan inf -inf 3.5e38 1e308 -0.5".split(),
]
"""Values that no number of a command can have."""
SENSE = {("--seed", NONSENSE[2]), ("--train.seed", NONSENSE[2])}  # the largest seed that there is
NUMBERS = [
    *NONSENSE,
    *"0 1 2147483648 1e-45 1_0 0x10".split(),
    *("", " ", "٣", "two", "1" + "0" * 5000, "1/2", "None", "--"),
]
WORDS = [
    *("", " ", "\n", "a" * 256, "é" * 200, "a" * 100_000),
    *("\x1b[2J\x1b[H", "\u202eevil", "漢字.txt", "\udcff", "%s%n%p", "$(id)", "{0.__class__}"),
    *"- -- .. . / ~ a/b ../../../../etc/passwd /dev/null /dev/zero /dev/full".split(),
    *"pipe socket loop missing missing/deep.png folder folder/deep.txt empty binary stories.txt".split(),
    *"closed latest arithmetic tiny [ ** http://127.0.0.1:9/v1 meta-llama/Llama-2-7b-hf nothing.py".split(),
    *"x.png x.html tiny/../tiny step_000000".split(),
]


@dataclass(frozen=True)
class Flag:
    """One flag of one command. kind: what help says it takes; nothing for a switch."""

    command: str
    name: str
    kind: str

    @property
    def number(self) -> bool:
        """Whether it takes a number."""
        return "INT" in self.kind or "FLOAT" in self.kind


def flags_of(command: str) -> list[Flag]:
    """Every flag that the command's help lists."""
    from bitnet.cli.main import main

    out = io.StringIO()
    os.environ["COLUMNS"] = "400"  # each flag with its kind on one line
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main([*command.split(), "--help"])
    del os.environ["COLUMNS"]
    found = re.findall(
        r"│ (?:-\w, )?(--[a-z][\w.-]*)(?: ((?:\[|\{|[A-Z]).*?))?(?:  |\s*│)", out.getvalue(), re.MULTILINE
    )
    return [Flag(command, name, kind.strip()) for name, kind in dict(found).items()]


def draw(flags: Sequence[Flag], generator: random.Random) -> tuple[list[str], bool]:
    """The words of one command with these flags in turn, and whether only a refusal is right."""
    first = flags[0].command.split()
    if generator.random() < 0.1 and len(first) > 1:
        first[-1] = generator.choice(WORDS)
    pairs = [given(flag, generator) for flag in flags]
    return [*first, *BASES[flags[0].command], *(word for words, _ in pairs for word in words)], (
        any(nonsense for _, nonsense in pairs) and "--help" not in (flag.name for flag in flags)
    )


def given(flag: Flag, generator: random.Random) -> tuple[list[str], bool]:
    """A flag with a hostile value, and whether the value is no number that anybody could mean."""
    value = generator.choice(NUMBERS if flag.number else WORDS)
    if not flag.kind and generator.random() < 0.8:
        return [flag.name], False
    nonsense = flag.number and value in NONSENSE and (flag.name, value) not in SENSE
    return [f"{flag.name}={value}"] if generator.random() < 0.3 else [flag.name, value], nonsense
