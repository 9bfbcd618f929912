"""Write the measured and the generated tables into README.md and the pages of docs/, between their markers.

    python benchmarks/readme.py      rewrite the tables from what the benchmarks recorded and the code says
    python benchmarks/readme.py --check   exit with 1 if a page does not hold exactly these tables

Results of experiments come from src/bitnet/experiments/measured.json (benchmarks/record.py), other figures
from benchmarks/results/ and from the code, the trees from the folders (benchmarks/tree.py). No figure is
typed by hand.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import itertools
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bitnet.cli.registry import experiment_names, find_experiment
from bitnet.experiments.text_data import TextData
from blocks import table, with_block
from cost import checked_table, devices_table, ledger_table, shapes_table
from faults import summary as faults_summary
from hardware import RESULTS, place_of, read_results
from tables import operators_table, results_table, summary_table, voice_table
from tree import annexes_tree, core_tree

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))


def variants_table() -> str:
    """Every variant as the code has it, with its criteria."""
    head = ["experiment", "variant", "parameters", "tokens", "updates", "optimizer", "success", "about"]
    rows = []
    for name in experiment_names():
        for variant, settings in find_experiment(name).variants.items():
            config, criteria = settings.config, ", ".join(str(criterion) for criterion in settings.criteria)
            size = [
                f"{config.model.total_params:,}",
                f"{config.train.total_tokens:,}",
                f"{config.train.total_steps:,}",
            ]
            rows.append([name, variant, *size, config.train.optimizer, criteria, settings.about])
    return table(head, rows)


def configuration_table(name: str) -> str:
    """The settings of the variants of one experiment, and their criteria: fields down, variants across."""
    variants = find_experiment(name).variants
    configs = {variant: settings.config for variant, settings in variants.items()}
    rows = [["parameters", *(f"{config.model.total_params:,}" for config in configs.values())]]
    rows += [["tokens", *(f"{config.train.total_tokens:,}" for config in configs.values())]]
    for section, fields in SHOWN_FIELDS.items():
        values = [dataclasses.asdict(getattr(config, section)) for config in configs.values()]
        rows += [
            [f"`{section}.{field}`", *(said(one[field]) for one in values)]
            for field in fields or values[0]
            if field in values[0]
        ]
    rows += [["success", *(", ".join(map(str, settings.criteria)) for settings in variants.values())]]
    return table(["", *configs], rows)


def said(value: Any) -> str:
    """A setting as a reader would write it."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "-"
    return "-" if value is None else str(value)


MODEL_FIELDS = """
    vocab_size hidden_size num_layers num_heads num_kv_heads ffn_hidden_size max_seq_length sub_norm
"""
TRAIN_FIELDS = """
    seq_len batch_size grad_accumulation_steps total_steps stage1_unlikelihood stage2_unlikelihood optimizer
    schedule peak_lr muon_lr final_lr warmup_steps stage1_wd
"""
SHOWN_FIELDS = {"model": MODEL_FIELDS.split(), "train": TRAIN_FIELDS.split(), "data": []}
"""The fields of each section that a page shows; [] means all."""


def recipes_table() -> str:
    """Recipes of the justfile with their comments."""
    pairs = re.findall(
        r"^# (.*)\n([a-z][\w-]*)[^\n]*: _ready", (ROOT / "justfile").read_text(encoding="utf-8"), re.MULTILINE
    )
    return table(["recipe", "what it does"], [[f"`./just {name}`", about] for about, name in pairs])


def flags_table(kind: str) -> str:
    """Flags of a class of bitnet.cli.train, from its source: name and docstring of each field."""
    tree = ast.parse((ROOT / "src" / "bitnet" / "cli" / "train.py").read_text(encoding="utf-8"))
    (body,) = (node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == kind)
    rows = []
    for field, about in itertools.pairwise(body):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(about, ast.Expr)
        ):
            assert isinstance(about.value, ast.Constant)
            named = re.search(r"arg\(name='([^']+)'", ast.unparse(field.annotation))
            name = named[1] if named else field.target.id.replace("_", "-")
            rows.append([f"`--{name}`", " ".join(str(about.value.value).split())])
    return table(["flag", "meaning"], rows)


def text_flags_table() -> str:
    """Short flags of the experiments on real text."""
    return table(["flag", "meaning"], [[f"`--{flag.name}`", flag.about] for flag in TextData.short_flags])


def speed_table() -> str:
    """One row per shape and way, for each device that was measured."""
    head = ["shape", "way", "formats", "tokens/s", "limit", "x dense bf16", "x transformers bf16", "peak GB"]
    parts = []
    for path in sorted(RESULTS.glob("train_speed_*.json")):
        values = read_results(path.stem)
        rows = [
            [
                f"{row['shape']} {row['rows']}x{row['tokens']}",
                row["way"],
                row.get("formats", ""),
                f"{row['tokens_per_sec']:,.0f}",
                # The first results were made before there were peers.
                f"{row.get('limit', row['products_ms'] / row['update_ms']):.0%}",
                _times(row.get("times dense bf16 compiled")),
                _times(row.get("times transformers bf16")),
                f"{row['peak_gb']:.2f}",
            ]
            for row in values["rows"]
        ]
        parts.append(f"{table(head, rows)}\n\nMeasured on: {place_of(values['where'])}.")
    return "\n\n".join(parts)


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"


def faults_table() -> str:
    """Every planted fault and healthy model with its verdict, from benchmarks/faults.py."""
    values = read_results("faults")
    if not values:
        return "Not measured yet: python benchmarks/faults.py"
    rows, where = values["rows"], values["where"]
    head = ["planted", "found by", "verdict", "how sure", ""]
    lines = [
        [
            row["name"],
            next(
                (name for name in row["evidence"] if row["check"] and row["check"] in name),
                "; ".join(row["evidence"][:1]),
            ),
            row["suspect"],
            row["sure"],
            "" if row["right_suspect"] and row["right_check"] else "WRONG",
        ]
        for row in rows
    ]
    commits = ", ".join(dict.fromkeys(row["commit"] for row in rows))
    place = f"{where['hardware']}, torch {where['torch']}, commits {commits}, {where['date']}"
    return f"{faults_summary(rows)}.\n\n{table(head, lines)}\n\nMeasured on: {place}."


def equality_table() -> str:
    """The packed engine beside PyTorch, from benchmarks/equality.py: with an f32 head, the answers that
    differ, and with the head that is the default where that is another.
    """
    values = read_results("equality")
    if not values:
        return "Not measured yet: python benchmarks/equality.py RUN"
    exact = [row for row in values["rows"] if row["head"] == "f32"]
    others = [row for row in values["rows"] if row["head"] != "f32"]
    head = ["run, f32 head", "sums that differ", "codes that differ", "logits given the codes"]
    head += ["tokens within 0.001", "largest", "answers that differ", "verdicts", "their measures"]
    first = table(
        head,
        [
            [
                row["run"],
                f"{row['sums_different']} of {row['sums']:,}",
                f"{row['forced']['other_codes']} of {row['forced']['codes']:,}",
                f"{row['forced']['apart']:.0e}",
                *_apart(row),
            ]
            for row in exact
        ],
    )
    head = ["answer", "token", "gap of the two", "engines apart", "first other code", "x * 127 / max", "name"]
    named = [[row["run"], *_named(one)] for row in exact for one in row["differences"]]
    head_by_default = ["run", "head", "tokens within 0.001", "largest", "answers that differ"]
    head_by_default += ["verdicts", "their measures"]
    last = table(head_by_default, [[row["run"], row["head"], *_apart(row)] for row in others])
    return "\n\n".join([first, table(head, named), last, f"Measured on: {place_of(values['where'])}."])


def _apart(row: dict[str, Any]) -> list[str]:
    logits = row["logits"]
    plain, packed = (", ".join(f"{value:.4g}" for value in one) for one in row["criteria"])
    same = "equal" if plain == packed else f"{plain} and {packed}"
    return [
        f"{logits['within']:.1%}",
        f"{logits['largest']:.1e}",
        f"{row['different']} of {row['prompts']:,}",
        " and ".join(row["verdict"]),
        same,
    ]


def _named(one: dict[str, Any]) -> list[str]:
    code = one["first"]
    place = f"{code['layer']}, token {code['token']}, input {code['input']}" if code else "none"
    return [
        str(one["after"]),
        f"{one['gap']:.1e}",
        f"{one['apart']:.1e}",
        place,
        f"{code['exact']:.5f}" if code else "",
        one["explained"] or "NOT EXPLAINED",
    ]


def reliability_table() -> str:
    """One row per group of trials, from benchmarks/reliability."""
    kinds = read_results("reliability")
    if not kinds:
        return "Not measured yet: python benchmarks/reliability --help"
    names = {
        "kills": "kills",
        "corruptions": "corruptions",
        "full_disk": "full disk",
        "fuzz": "commands",
        "hostile_files": "hostile files",
    }
    rows, places = [], []
    for kind, entry in kinds.items():
        for row in entry["rows"]:
            failures = "; ".join(
                f"{one['name']}: {one['outcome']}".replace("|", "/") for one in row["failures"]
            )
            rows.append([names[kind], row["group"], f"{row['trials']:,}", f"{row['held']:,}", failures])
        trials = f"{names[kind]}: seed {entry['seed']}, {entry['seconds']:,} s"
        places.append(f"{trials}, {place_of(entry['where'])}")
    head = ["trials", "of what", "number", "held", "what did not"]
    return f"{table(head, rows)}\n\nMeasured on: {'; '.join(places)}."


BLOCKS: dict[str, Callable[[], str]] = {
    "core": core_tree,
    "annexes": annexes_tree,
    "summary": summary_table,
    "results": results_table,
    "operators": operators_table,
    "variants": variants_table,
    "speed": speed_table,
    "shapes": shapes_table,
    "devices": devices_table,
    "ledger": ledger_table,
    "checked": checked_table,
    "voice": voice_table,
    "faults": faults_table,
    "equality": equality_table,
    "reliability": reliability_table,
    "recipes": recipes_table,
    "flags": lambda: flags_table("TrainFlags"),
    "text_flags": text_flags_table,
    **{f"configuration {name}": functools.partial(configuration_table, name) for name in experiment_names()},
    **{f"measured {name}": functools.partial(results_table, name) for name in experiment_names()},
}


def with_tables(text: str) -> str:
    """A page's text with every block between markers replaced."""
    for name, block in BLOCKS.items():
        if f"<!-- {name} -->" in text:
            text = with_block(text, name, block())
    return text


def main() -> int:
    texts = {page: page.read_text(encoding="utf-8") for page in PAGES}
    stale = {page: new for page, text in texts.items() if (new := with_tables(text)) != text}
    if "--check" in sys.argv[1:]:
        differing = [f"{page.name} differs; run: python benchmarks/readme.py" for page in stale]
        print("; ".join(differing) or "all pages are up to date")
        return int(bool(stale))
    for page, text in stale.items():
        page.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
