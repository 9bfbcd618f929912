"""Topics to prompts: several batches of messages about each topic, asked of a teacher and read out of its
free text.

A batch is one request for a numbered list, and one line of the journal. Prompts that are the same apart from
case, spaces and marks are kept once over all topics. Topics may be added to the file later: the same command
does what is missing. Not here: the answers (answers.py).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitnet.bounds import SEEDS, within
from bitnet.errors import DataError
from bitnet.files import sha256_of, write_json
from bitnet.voice.card import prompts_card
from bitnet.voice.journal import Journal, open_journal, write_lines, write_whole
from bitnet.voice.teachers import Request, Teacher
from bitnet.voice.topics import is_held_out, same
from bitnet.voice.voices import Voice

FILE = "prompts.jsonl"
LONGEST = 300  # characters; longer entries are no short message
NOTHING_AFTER = (
    5  # batches without one readable prompt, from the start, after which the teacher talks nonsense
)
ANGLES = (
    "simple questions",
    "personal questions and small talk",
    "requests for advice",
    "questions for an opinion",
    "requests for an explanation",
    "surprising or silly questions",
)
ENTRY = re.compile(r"^\s*(?:\(?\d{1,3}[.):\]]|[-*•–])\s*(?P<text>\S.*)$")
Report = Callable[[int, int, int], None]
"""Told of progress: pieces done, pieces in all, entries kept."""


@dataclass(frozen=True, kw_only=True)
class PromptOptions:
    """How many prompts: batches of a topic, and entries asked for in each."""

    batches: int = 6
    per_batch: int = 12
    seed: int = 42

    def __post_init__(self) -> None:
        within("--batches", self.batches, 1, 10_000)
        within("--per-batch", self.per_batch, 1, 1000)
        within("--seed", self.seed, *SEEDS)


def make_prompts(
    topics: Sequence[str],
    asker: Voice,
    teacher: Teacher,
    options: PromptOptions,
    folder: Path,
    report: Report,
) -> dict[str, Any]:
    """Ask for what the journal lacks, then write prompts.jsonl, manifest.json and the data card. Returns the
    manifest.
    """
    settings = {
        "voice": asker.name,
        "voice_sha256": asker.sha256,
        "teacher": teacher.describe(),
        "batches": options.batches,
        "per_batch": options.per_batch,
        "seed": options.seed,
    }
    types = {"topic": str, "batch": int, "prompts": list[str], "reply": str}
    with open_journal(folder, settings, types, ("topic", "batch", "prompts")) as journal:
        done = {(row["topic"], row["batch"]) for row in journal.rows}
        wanted = [(topic, batch) for topic in topics for batch in range(options.batches)]
        missing = [piece for piece in wanted if piece not in done]
        entries = sum(len(row["prompts"]) for row in journal.rows)
        for first in range(0, len(missing), teacher.batch_size):
            part = missing[first : first + teacher.batch_size]
            entries += _ask(part, asker, teacher, options, journal)
            report(len(wanted) - len(missing) + first + len(part), len(wanted), entries)
            if not entries and len(journal.rows) >= NOTHING_AFTER:
                raise DataError(
                    f"the teacher answers nonsense: no prompt could be read in {len(journal.rows)} batches "
                    "(the last reply begins "
                    f"{journal.rows[-1]['reply'][:60]!r}); take another --teacher and a new --out"
                )
        rows, dropped = kept_prompts(journal.rows, topics)
    if not rows:
        raise DataError(
            "no prompt could be read out of the teacher's replies; take another --teacher and a new --out"
        )
    return _finish(folder, settings, topics, rows, dropped)


def _finish(
    folder: Path,
    settings: dict[str, Any],
    topics: Sequence[str],
    rows: list[dict[str, Any]],
    dropped: Counter[str],
) -> dict[str, Any]:
    write_lines(folder / FILE, rows)
    counts = Counter(row["topic"] for row in rows)
    manifest = {
        "kind": "prompts",
        **settings,
        "topics": len(topics),
        "topics_held_out": sum(map(is_held_out, topics)),
        "topics_without_prompt": [topic for topic in topics if not counts[topic]],
        "prompts": len(rows),
        "prompts_held_out": sum(row["held_out"] for row in rows),
        "fewest_of_a_topic": min(counts[topic] for topic in topics),
        "dropped": dict(dropped),
    }
    write_json(folder / "manifest.json", manifest)
    write_whole(folder / "README.md", prompts_card(manifest))
    return manifest


def _ask(
    part: Sequence[tuple[str, int]], asker: Voice, teacher: Teacher, options: PromptOptions, journal: Journal
) -> int:
    """One batch of each piece; returns how many entries there were. What a reply without prompts said is
    kept, to be shown.
    """
    entries = 0
    requests = [
        Request(
            asker,
            topic,
            instruction(topic, batch, options.per_batch),
            options.seed + batch,
            options.per_batch,
        )
        for topic, batch in part
    ]
    for (topic, batch), reply in zip(part, teacher.reply(requests), strict=True):
        found = read_list(reply.text, ended=reply.ended)
        journal.append(
            {
                "topic": topic,
                "batch": batch,
                "prompts": found,
                **({} if found else {"reply": reply.text[:200]}),
            }
        )
        entries += len(found)
    return entries


def instruction(topic: str, batch: int, count: int) -> str:
    """What a language model is asked for."""
    return (
        f"Write {count} different short messages that somebody might send about this topic: {topic}. In this "
        "list: "
        f"{ANGLES[batch % len(ANGLES)]}. Each names the topic and is at most 20 words long. Write them as a "
        "numbered list, "
        "one on each line, and nothing else."
    )


def read_list(text: str, *, ended: bool = True) -> list[str]:
    """The entries of a list in free text: numbered or marked lines, else every line that is no heading.

    The last entry of a reply that was cut off is left out: it is not whole.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    marked = [match["text"] for match in map(ENTRY.match, lines) if match]
    entries = marked or [line for line in lines if not line.rstrip().endswith(":")]
    entries = entries if ended else entries[:-1]
    stripped = (entry.strip().strip("*_ ").strip('"“”').strip() for entry in entries)
    return [
        entry
        for entry in stripped
        if 3 <= len(entry) <= LONGEST and any(letter.isalpha() for letter in entry)
    ]


def kept_prompts(
    journal: Sequence[dict[str, Any]], topics: Sequence[str]
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Every prompt once, in the order of topics and batches, and how many were dropped, by reason."""
    place = {topic: number for number, topic in enumerate(topics)}
    batches = sorted(
        (row for row in journal if row["topic"] in place), key=lambda row: (place[row["topic"]], row["batch"])
    )
    kept: dict[str, dict[str, Any]] = {}
    dropped: Counter[str] = Counter()
    for row in batches:
        dropped["unreadable_batches"] += not row["prompts"]
        for prompt in row["prompts"]:
            key = re.sub(r"[\W_]+", " ", same(prompt)).strip()
            if not key or key in kept:
                dropped["repeats"] += 1
                continue
            name = sha256_of(f"{row['topic']}\x1f{prompt}")[:16]
            kept[key] = {
                "id": name,
                "topic": row["topic"],
                "held_out": is_held_out(row["topic"]),
                "prompt": prompt,
            }
    return list(kept.values()), dropped
