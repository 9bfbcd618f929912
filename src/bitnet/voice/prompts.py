"""Topics to prompts: ask a teacher for several batches of messages about each topic, and read them out of its
free text.

A batch is one request for a numbered list, and one line of the journal. Prompts that are equal apart from
case, spaces and punctuation are kept once, over all topics. Topics may be added to the file later: the same
command then asks for what is missing. Not here: the answers (answers.py).
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
from bitnet.files import sha256_of
from bitnet.voice.folder import Journal, counted, data_card, json_lines, open_journal, write_results
from bitnet.voice.teachers import Request, Teacher
from bitnet.voice.topics import is_held_out, same
from bitnet.voice.voices import Voice

FILE = "prompts.jsonl"
LONGEST = 300  # characters of a short message
NOTHING_AFTER = 5  # batches without a single readable prompt, after which the command stops
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
"""Called with progress: items done, items in all, entries kept."""


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
    """Ask for what the journal lacks, then write the prompts, manifest and card. Returns the manifest."""
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
                last = journal.rows[-1]["reply"][:60]
                raise DataError(
                    f"the teacher's replies are unusable: no prompt could be read in {len(journal.rows)} "
                    f"batches (the last reply begins {last!r}); choose another --teacher and a new --out"
                )
        rows, dropped = kept_prompts(journal.rows, topics)
    if not rows:
        raise DataError(
            "no prompt could be read in the teacher's replies; choose another --teacher and a new --out"
        )
    return _finish(folder, settings, topics, rows, dropped)


def _finish(
    folder: Path,
    settings: dict[str, Any],
    topics: Sequence[str],
    rows: list[dict[str, Any]],
    dropped: Counter[str],
) -> dict[str, Any]:
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
    write_results(folder, {FILE: json_lines(rows)}, manifest, _card(manifest))
    return manifest


def _card(manifest: dict[str, Any]) -> str:
    about = (
        f"{manifest['prompts']:,} messages about {manifest['topics']:,} topics, written by a program "
        f"({manifest['batches']} batches of {manifest['per_batch']} for each topic), not by people."
    )
    facts = {
        "Prompts": f"{manifest['prompts']:,}",
        "Held out": f"{manifest['prompts_held_out']:,} of them, on {manifest['topics_held_out']:,} topics",
        "Fewest of a topic": f"{manifest['fewest_of_a_topic']:,}",
        "Dropped": counted(manifest["dropped"]),
    }
    files = (
        "`prompts.jsonl`: one object a line with `id`, `topic`, `held_out` (kept from all fine-tuning, for "
        "judging) and `prompt`."
    )
    return data_card("Prompts", about, manifest, facts, files)


def _ask(
    part: Sequence[tuple[str, int]], asker: Voice, teacher: Teacher, options: PromptOptions, journal: Journal
) -> int:
    """Ask for one batch of each (topic, batch). Returns the number of entries."""
    count = options.per_batch
    requests = [
        Request(asker, topic, instruction(topic, batch, count), options.seed + batch, count)
        for topic, batch in part
    ]
    entries = 0
    for (topic, batch), reply in zip(part, teacher.reply(requests), strict=True):
        found = read_list(reply.text, ended=reply.ended)
        row = {"topic": topic, "batch": batch, "prompts": found}
        # where nothing could be read, the beginning of the reply shows why
        journal.append(row if found else {**row, "reply": reply.text[:200]})
        entries += len(found)
    return entries


def instruction(topic: str, batch: int, count: int) -> str:
    """What a language model is asked."""
    return (
        f"Write {count} different short messages that somebody might send about this topic: {topic}. In this "
        f"list: {ANGLES[batch % len(ANGLES)]}. Each names the topic and is at most 20 words long. Write them "
        "as a numbered list, one on each line, and nothing else."
    )


def read_list(text: str, *, ended: bool = True) -> list[str]:
    """The entries of a list in free text: numbered or marked lines, else every line that is not a heading.

    The last entry of a reply that was cut off is left out, because it may not be whole.
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
    """Every prompt once, in the order of topics and batches, and the number dropped by reason."""
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
            kept[key] = {
                "id": sha256_of(f"{row['topic']}\x1f{prompt}")[:16],
                "topic": row["topic"],
                "held_out": is_held_out(row["topic"]),
                "prompt": prompt,
            }
    return list(kept.values()), dropped
