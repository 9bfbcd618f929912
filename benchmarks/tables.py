"""The tables of measured experiments, from src/bitnet/experiments/measured.json.

benchmarks/record.py writes that file, and benchmarks/readme.py puts the tables into the pages.
"""

from __future__ import annotations

from collections.abc import Iterable

from bitnet.experiments.measured import Result, Row, between, measured, results
from blocks import table

KINDS = ("exact_match", "exact_match_add", "exact_match_sub", "exact_match_mul", "exact_match_div")


SUMMARY = {
    "arithmetic": ("exact_match", "{:.2%}", "of held-out problems answered exactly"),
    "tictactoe": ("legal_rate", "{:.2%}", "legal moves, over all 294,778 unfinished lines of the game"),
    "json_records": ("typical_valid", "{:.2%}", "of sampled records are valid JSON"),
    "python_subset": ("right", "{:.2%}", "of held-out functions compute what their name says"),
    "tinystories": ("bits_per_byte", "{:.3f}", "bits per byte of held-out stories"),
    "bitnut_sft": ("in_voice", "{:.2%}", "of answers in the voice"),
}
"""For each experiment of the short table: a metric, the format of its figure, and its meaning."""


def summary_table() -> str:
    """The most complete ternary result of each experiment of SUMMARY, then the controls."""
    head = ["experiment", "variant", "parameters", "tokens", "result", "seeds that pass", "minutes", "on"]
    rows = []
    for one in filter(None, map(most_complete, SUMMARY)):
        row = one.newest
        size = [f"{row['parameters']:,}", tokens_of(row)]
        facts = [sentence_of(one), seeds(one), spread(one, "minutes", 1), hardware(one)]
        rows.append([row["experiment"], row["variant"], *size, *facts])
    return "\n\n".join([table(head, rows), *controls()])


def sentence_of(result: Result) -> str:
    """The metric of SUMMARY in a result: its figure, or the lowest and the highest of several seeds."""
    metric, form, says = SUMMARY[result.newest["experiment"]]
    values = [run["metrics"][metric] for run in result.rows]
    return f"{between([form.format(value) for value in (min(values), max(values))])} {says}"


def controls() -> list[str]:
    """One sentence for each control of an experiment of SUMMARY."""
    return [
        f"The control of {row['experiment']} `{row['variant']}`, the same model with full-precision weights: "
        f"{sentence_of(one)}."
        for one in results()
        if (row := one.newest)["weights"] == "full" and row["experiment"] in SUMMARY
    ]


def most_complete(name: str) -> Result | None:
    """The ternary result of an experiment with its whole budget; of several `best`, then the most seeds."""

    def order(one: Result) -> tuple[bool, bool, int]:
        return one.newest["full_budget"], one.newest["variant"] == "best", len(one.rows)

    found = [one for one in results() if one.newest["experiment"] == name]
    return max((one for one in found if one.newest["weights"] == "ternary"), key=order, default=None)


def hardware(result: Result) -> str:
    """The hardware of the runs, each once, with the notes."""
    places = [", ".join(filter(None, (row["hardware"], row["note"]))) for row in result.rows]
    return "; ".join(dict.fromkeys(places)).replace("(R)", "").replace(" Processor", "")


def seeds(result: Result) -> str:
    """The number of seeds that met every criterion."""
    return f"{sum(row['verdict'] == 'PASS' for row in result.rows)} of {len(result.rows)}"


def tokens_of(row: Row) -> str:
    """Tokens read, with the budget of the variant if the run was shorter."""
    budget = "" if row["full_budget"] else f" of {row['budget'] / 1e6:.0f}M"
    return f"{row['tokens'] / 1e6:.1f}M{budget}"


def results_table(only: str | None = None) -> str:
    """One row per result (the recorded seeds of one variant), of all experiments or of one."""
    found = [one for one in results() if only in (None, one.newest["experiment"])]
    if not found:
        return "Nothing yet."
    head = ["experiment", "variant", "data", "parameters", "tokens", "result"]
    head += ["loss, first and last 100", "minutes of updates", "commit"]
    rows = []
    for one in found:
        row = one.newest
        size = [one.data, f"{row['parameters']:,}", tokens_of(row)]
        losses = f"{spread(one, 'first_loss', 2)}, {spread(one, 'last_loss', 3)} (on {row['loss_on']})"
        commits = ", ".join(dict.fromkeys(run["commit"] for run in one.rows))
        facts = [f"{one.figures}: {one.verdict}", losses, spread(one, "minutes", 1), commits]
        rows.append([row["experiment"], variant_name(row), *size, *facts])
    return table(head, rows) + "\n\nMeasured on: " + "; ".join(places(found)) + "."


def variant_name(row: Row) -> str:
    """The variant, and the weights if they are not ternary."""
    return f"{row['variant']}" + ("" if row["weights"] == "ternary" else f", weights {row['weights']}")


def spread(result: Result, key: str, digits: int) -> str:
    """A fact of the runs, or its lowest and highest."""
    values = [run[key] for run in result.rows]
    return between([f"{value:.{digits}f}" for value in (min(values), max(values))])


def places(found: Iterable[Result]) -> list[str]:
    """Where the runs were measured, each place once, with the notes."""
    notes = {
        run["hardware"] + f", torch {run['torch']}" + (f", {run['note']}" if run["note"] else "")
        for one in found
        for run in one.rows
    }
    return sorted(notes)


def operators_table() -> str:
    """Exact match of the arithmetic runs per operator."""
    head = ["variant", "tokens", "exact match", "+", "-", "*", "//"]
    rows = []
    for one in results():
        row = one.newest
        if row["experiment"] == "arithmetic":
            metrics = [run["metrics"] for run in one.rows]
            values = [[100 * found[kind] for found in metrics if kind in found] for kind in KINDS]
            shares = [between([f"{min(kind):.2f}%", f"{max(kind):.2f}%"]) if kind else "" for kind in values]
            rows.append([variant_name(row), f"{row['tokens'] / 1e6:.1f}M", *shares])
    return table(head, rows)


VOICE = {
    "answers that end by themselves within 128 tokens": ("answers_ended", "answers_ended"),
    "answers in the voice": ("in_voice", "in_voice"),
    "answers that mention the topic": ("mention_topic", "mention_topic"),
    "different answers": ("distinct_answers", "distinct_answers"),
    "loss on held-out answers, nats/token": ("nats_before", "nats_per_token"),
    "loss on the text of pre-training, nats/token": ("text_nats_before", "text_nats"),
    "forgotten since its own start, nats/token": ("", "forgetting"),
    "held-out pairs preferred rightly": ("", "preferred"),
}
"""Figures of the fine-tuned runs: the metric before fine-tuning, if there is one, and after."""


def voice_table() -> str:
    """The newest fine-tuned run and the newest preference run, on the same prompts about held-out topics."""
    newest = {row["experiment"]: row for row in measured()}
    if "bitnut_sft" not in newest:
        return "Not measured yet."
    columns = [newest[name] for name in ("bitnut_sft", "bitnut_dpo") if name in newest]
    head = ["figure", "bitnut quick, before", *(f"{row['experiment']} {row['variant']}" for row in columns)]
    rows = []
    for name, (before, after) in VOICE.items():
        start = columns[0]["metrics"].get(before) if before != after else None
        values = [row["metrics"].get(after) for row in columns]
        shares = f"{after}_cases" in columns[-1]["metrics"]
        form = "{:.1%}" if shares else "{:.3f}"
        rows.append([name, *("" if value is None else form.format(value) for value in (start, *values))])
    cases = columns[0]["metrics"]["answers_ended_cases"]
    places = "; ".join(
        f"{row['experiment']}: {row['parameters']:,} parameters, {row['minutes']:.1f} min, commit "
        f"{row['commit']}"
        for row in columns
    )
    where = f"{columns[0]['hardware']}, torch {columns[0]['torch']}"
    return (
        f"{table(head, rows)}\n\n{cases:.0f} prompts about 20 topics that no training saw. {places}. "
        f"Measured on: {where}."
    )
