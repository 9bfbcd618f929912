"""Prompts to answers in a voice that pass the gates; for preference optimisation, a plain answer beside each.

Each attempt at a prompt is one line of the journal, taken, or refused with the reason. A refused prompt is
tried again with another seed, `attempts` times in all; then it is given up and counted. Repeating a command
that was killed continues it. Written at the end: answers.jsonl (id, topic, held_out, prompt, answer), with
`pairs` also pairs.jsonl (prompt, chosen, rejected), voice.toml (a copy of the voice), manifest and data card.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitnet.bounds import SEEDS, within
from bitnet.data.json_lines import JsonLines, read_json_lines
from bitnet.errors import ConfigError, DataError, NotFoundError
from bitnet.voice.folder import Journal, counted, data_card, json_lines, open_journal, write_results
from bitnet.voice.prompts import FILE as PROMPTS_FILE
from bitnet.voice.prompts import Report
from bitnet.voice.score import REASONS, Gates, broken, cleaned, first_words, in_voice
from bitnet.voice.teachers import Reply, Request, Teacher
from bitnet.voice.topics import mentions, same
from bitnet.voice.voices import VOICE_FILE, Voice, built_in

FILE = "answers.jsonl"
PAIRS_FILE = "pairs.jsonl"
NOTHING_AFTER = 40  # refused answers without one that was taken, after which the command stops


@dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """How often to try, and whether to make pairs."""

    attempts: int = 3
    seed: int = 42
    pairs: bool = False

    def __post_init__(self) -> None:
        within("--attempts", self.attempts, 1, 1000)
        within("--seed", self.seed, *SEEDS)


def make_answers(
    prompts_dir: Path, voice: Voice, teacher: Teacher, options: AnswerOptions, folder: Path, report: Report
) -> dict[str, Any]:
    """Answer what the journal lacks, then write the results. Returns the manifest."""
    found = read_prompts(prompts_dir)
    prompts = found.rows
    if options.pairs and not voice.signs:
        raise ConfigError(
            f"--pairs needs signs that tell the voice {voice.name} from a plain answer; give its file [signs]"
        )
    settings = {
        "voice": voice.name,
        "voice_sha256": voice.sha256,
        "teacher": teacher.describe(),
        "attempts": options.attempts,
        "seed": options.seed,
        "pairs": options.pairs,
    }
    types = {"id": str, "attempt": int, "answer": str, "plain": str, "refused": str | None}
    with open_journal(folder, settings, types, ("id", "refused")) as journal:
        work = _Work(voice, teacher, options, journal)
        waiting = [prompt for prompt in prompts if not work.finished(prompt["id"])]
        for first in range(0, len(waiting), teacher.batch_size):
            work.answer(waiting[first : first + teacher.batch_size])
            finished = len(prompts) - len(waiting) + min(first + teacher.batch_size, len(waiting))
            report(finished, len(prompts), len(work.answers))
            work.stop_without_answers()
        if options.pairs:
            work.add_plain_answers(prompts, report)
    return _finish(folder, settings, found, work)


class _Work:
    """The state of the answers, which is what the journal says."""

    def __init__(self, voice: Voice, teacher: Teacher, options: AnswerOptions, journal: Journal) -> None:
        self.voice, self.teacher, self.options, self.journal = voice, teacher, options, journal
        self.gates = Gates(voice)
        self.answers: dict[str, str] = {}
        self.plain: dict[str, dict[str, Any]] = {}
        self.tried: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        for number, row in enumerate(journal.rows, start=2):
            if not {"plain", "answer"} & row.keys():
                raise DataError(
                    f"line {number} of the journal has no answer; delete the line and that item is "
                    "regenerated"
                )
            self._count(row)

    def _count(self, row: dict[str, Any]) -> None:
        if "plain" in row:
            self.plain[row["id"]] = row
            return
        self.tried[row["id"]] += 1
        if row["refused"] is None:
            self.answers[row["id"]] = row["answer"]
            self.gates.keep(row["answer"])
        else:
            self.refused[row["refused"]] += 1

    def finished(self, name: str) -> bool:
        """Answered, or given up."""
        return name in self.answers or self.tried[name] >= self.options.attempts

    def answer(self, prompts: Sequence[dict[str, Any]]) -> None:
        """Try until each prompt is finished."""
        while prompts:
            requests = [self._request(self.voice, prompt, self.tried[prompt["id"]]) for prompt in prompts]
            for prompt, reply in zip(prompts, self.teacher.reply(requests), strict=True):
                self._judge(prompt["id"], Reply(cleaned(reply.text, self.voice), reply.ended))
            prompts = [prompt for prompt in prompts if not self.finished(prompt["id"])]

    def _request(self, voice: Voice, prompt: dict[str, Any], attempt: int) -> Request:
        return Request(voice, prompt["topic"], prompt["prompt"], self.options.seed + attempt)

    def _judge(self, name: str, reply: Reply) -> None:
        last = self.tried[name] + 1 >= self.options.attempts
        refused = self.gates.refuses(reply, last_attempt=last)
        row = {"id": name, "attempt": self.tried[name], "answer": reply.text, "refused": refused}
        self.journal.append(row)
        self._count(row)

    def stop_without_answers(self) -> None:
        """Raise DataError if none of the first answers could be taken."""
        if not self.answers and self.refused.total() >= NOTHING_AFTER:
            reasons = ", ".join(f"{reason} {count}" for reason, count in self.refused.most_common())
            example = self.journal.rows[-1]["answer"][:60]
            raise DataError(
                f"the teacher's replies are unusable: none of {self.refused.total()} passed the gates "
                f"({reasons}; the last begins {example!r}); choose another --teacher, or another voice, and "
                "a new --out"
            )

    def add_plain_answers(self, prompts: Sequence[dict[str, Any]], report: Report) -> None:
        """The other side of the pairs: the same prompts, answered by the built-in plain voice."""
        plain = built_in("plain")
        waiting = [
            prompt for prompt in prompts if prompt["id"] in self.answers and prompt["id"] not in self.plain
        ]
        for first in range(0, len(waiting), self.teacher.batch_size):
            part = waiting[first : first + self.teacher.batch_size]
            replies = self.teacher.reply([self._request(plain, prompt, 0) for prompt in part])
            for prompt, raw in zip(part, replies, strict=True):
                reply = Reply(cleaned(raw.text, plain), raw.ended)
                refused = broken(reply, plain) or ("in_voice" if in_voice(reply.text, self.voice) else None)
                row = {"id": prompt["id"], "plain": reply.text, "refused": refused}
                self.journal.append(row)
                self._count(row)
            report(len(self.plain), len(self.answers), len(self.plain))


def read_prompts(folder: Path) -> JsonLines:
    """The prompts of `bitnet voice prompts`. Broken lines are counted; more than 5% of them are an error."""
    path = folder / PROMPTS_FILE
    if not path.is_file():
        raise NotFoundError(
            f"there is no {PROMPTS_FILE} in {folder}; make it with: bitnet voice prompts --topics FILE --out "
            f"{folder}"
        )
    return read_json_lines(path, _prompt_problem)


def _prompt_problem(row: dict[str, Any]) -> str | None:
    for key in ("id", "topic", "prompt"):
        if not isinstance(row.get(key), str) or not row[key].strip():
            return f"{key} is not a text"
    return None if isinstance(row.get("held_out"), bool) else "held_out is neither true nor false"


def _finish(folder: Path, settings: dict[str, Any], found: JsonLines, work: _Work) -> dict[str, Any]:
    """The files that others read."""
    prompts = found.rows
    rows = [
        {**prompt, "answer": work.answers[prompt["id"]]} for prompt in prompts if prompt["id"] in work.answers
    ]
    if not rows:
        raise DataError(
            "no answer passed the gates; choose another --teacher, or another voice, and a new --out"
        )
    files = {FILE: json_lines(rows)}
    manifest = {
        "kind": "answers",
        **settings,
        "broken_prompts": found.broken,
        "first_broken": found.first_broken,
        **_counts(prompts, rows, work),
    }
    if work.options.pairs:
        taken = [row for row in rows if work.plain[row["id"]]["refused"] is None]
        files[PAIRS_FILE] = json_lines([_pair(row, work.plain[row["id"]]["plain"]) for row in taken])
        refused = Counter(row["refused"] for row in work.plain.values() if row["refused"])
        manifest |= {"pair_count": len(taken), "plain_refused": dict(refused)}
    files[VOICE_FILE] = work.voice.text

    # three examples at equal distances
    examples = rows[: 3 * (len(rows) // 3) : max(len(rows) // 3, 1)]
    write_results(folder, files, manifest, _card(manifest, examples))
    return manifest


def _pair(row: dict[str, Any], plain: str) -> dict[str, Any]:
    return {key: row[key] for key in ("id", "topic", "held_out", "prompt")} | {
        "chosen": row["answer"],
        "rejected": plain,
    }


def _counts(prompts: list[dict[str, Any]], rows: list[dict[str, Any]], work: _Work) -> dict[str, Any]:
    """What was made and what was not, and how good it is in numbers."""
    beginnings = Counter(first_words(same(row["answer"])) for row in rows)
    topics = Counter(row["topic"] for row in rows)
    shared = sum(count for count in beginnings.values() if count > 1)
    return {
        "prompts": len(prompts),
        "answers": len(rows),
        "answers_held_out": sum(row["held_out"] for row in rows),
        "given_up": len(prompts) - len(rows),
        "topics": len({prompt["topic"] for prompt in prompts}),
        "fewest_of_a_topic": min(topics.values()),
        "refused_attempts": {reason: work.refused[reason] for reason in REASONS},
        "in_voice": sum(in_voice(row["answer"], work.voice) for row in rows) / len(rows),
        "mention_topic": sum(mentions(row["answer"], row["topic"]) for row in rows) / len(rows),
        "shared_beginnings": shared / len(rows),
    }


def _card(manifest: dict[str, Any], examples: Sequence[dict[str, Any]]) -> str:
    facts = {
        "Answers": (
            f"{manifest['answers']:,} to {manifest['prompts']:,} prompts on {manifest['topics']:,} topics; "
            f"{manifest['answers_held_out']:,} are on topics held out"
        ),
        "Prompts given up": f"{manifest['given_up']:,} after {manifest['attempts']} attempts each",
        "Attempts refused": counted(manifest["refused_attempts"]),
        "In the voice": f"{manifest['in_voice']:.1%} by the words and patterns of the voice file",
        "Mention the topic": f"{manifest['mention_topic']:.1%}",
        "Share their first eight words": f"{manifest['shared_beginnings']:.1%}",
    }
    files = (
        "`answers.jsonl`: one object a line with `id`, `topic`, `held_out` (kept from all fine-tuning), "
        "`prompt` and `answer`."
    )
    if manifest["pairs"]:
        facts["Preference pairs"] = (
            f"{manifest['pair_count']:,}; plain answers refused: {counted(manifest['plain_refused'])}"
        )
        files += "\n`pairs.jsonl`: `prompt`, `chosen` (in the voice) and `rejected` (plain)."
    shown = "\n\n".join(
        f"> human: {row['prompt']}\n>\n> {manifest['voice']}: {row['answer']}" for row in examples
    )
    about = (
        f"Answers in the voice `{manifest['voice']}`, written by a program, not by people. They are for fun "
        "and say false things."
    )
    title = f"Answers of {manifest['voice']}"
    return data_card(title, about, manifest, facts, f"{files}\n\n## Examples\n\n{shown}")
