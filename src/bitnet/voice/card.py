"""The data card of generated data: what it is made of, by whom, and what was left out. Markdown, from the
manifest alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def prompts_card(manifest: Mapping[str, Any]) -> str:
    """README.md of a folder of prompts."""
    asked = f"{manifest['batches']} batches of {manifest['per_batch']} for each topic"
    return _page(
        "Prompts",
        f"{manifest['prompts']:,} messages about {manifest['topics']:,} topics, written by a program "
        f"({asked}), not by people.",
        {
            **_origin(manifest),
            "Prompts": f"{manifest['prompts']:,}",
            "Held out": (
                f"{manifest['prompts_held_out']:,} of them, on {manifest['topics_held_out']:,} topics"
            ),
            "Fewest of a topic": f"{manifest['fewest_of_a_topic']:,}",
            "Dropped": _counted(manifest["dropped"]),
        },
        "`prompts.jsonl`: one object a line with `id`, `topic`, `held_out` (kept from all fine-tuning, for "
        "judging) and `prompt`.",
    )


def answers_card(manifest: Mapping[str, Any], examples: Sequence[Mapping[str, Any]]) -> str:
    """README.md of a folder of answers."""
    facts = {
        **_origin(manifest),
        "Answers": (
            f"{manifest['answers']:,} to {manifest['prompts']:,} prompts on {manifest['topics']:,} topics; "
            f"{manifest['answers_held_out']:,} are on topics held out"
        ),
        "Prompts given up": f"{manifest['given_up']:,} after {manifest['attempts']} attempts each",
        "Attempts refused": _counted(manifest["refused_attempts"]),
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
            f"{manifest['pair_count']:,}; plain answers refused: {_counted(manifest['plain_refused'])}"
        )
        files += "\n`pairs.jsonl`: `prompt`, `chosen` (in the voice) and `rejected` (plain)."
    shown = "\n\n".join(
        f"> human: {row['prompt']}\n>\n> {manifest['voice']}: {row['answer']}" for row in examples
    )
    about = (
        f"Answers in the voice `{manifest['voice']}`, written by a program, not by people. They are for fun "
        "and say false things."
    )
    return _page(f"Answers of {manifest['voice']}", about, facts, f"{files}\n\n## Examples\n\n{shown}")


def _origin(manifest: Mapping[str, Any]) -> dict[str, str]:
    teacher = manifest["teacher"]
    return {
        "Teacher": f"`{teacher['name']}` ({teacher['kind']})",
        "Voice": f"`{manifest['voice']}`, sha256 of its file {manifest['voice_sha256']}",
        "Seed": str(manifest["seed"]),
    }


def _counted(counts: Mapping[str, int]) -> str:
    return (
        ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in counts.items() if count) or "none"
    )


def _page(title: str, about: str, facts: Mapping[str, str], files: str) -> str:
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    licence = (
        "Text that a language model wrote is under the terms of that model; the built-in rules and topics "
        "are under Apache-2.0."
    )
    return f"# {title}\n\n{about}\n\n| | |\n| --- | --- |\n{rows}\n\n{licence}\n\n## Files\n\n{files}\n"
