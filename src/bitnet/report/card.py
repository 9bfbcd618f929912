"""The model card of a run (Mitchell et al., arXiv:1810.03993): model, data, training, results, limits.

Everything comes from the run's files, and what they lack is named as missing. Not here: the card of generated
data (voice/folder.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bitnet.report import tables
from bitnet.report.page import write_text
from bitnet.report.read_run import Recorded, number, read_run
from bitnet.run.layout import RunLayout

LICENCES = {  # as the data sets' own pages on the hub state them
    "roneneldan/TinyStories": "CDLA-Sharing-1.0",
    "HuggingFaceFW/fineweb-edu": "ODC-By 1.0, and the terms of Common Crawl",
    "HuggingFaceFW/fineweb-edu-score-2": "ODC-By 1.0, and the terms of Common Crawl",
    "HuggingFaceTB/smollm-corpus:cosmopedia-v2": "ODC-By 1.0",
}
RECIPE = tuple(
    """
    seq_len batch_size grad_accumulation_steps total_steps objective stage1_unlikelihood stage2_unlikelihood
    loss_reduction optimizer schedule peak_lr muon_lr final_lr warmup_steps stage1_wd stage2_wd
    grad_clip_norm seed start_from
""".split()
)
SHAPE = tuple(
    """
    vocab_size hidden_size num_layers num_heads num_kv_heads ffn_hidden_size max_seq_length activation
    sub_norm
""".split()
)
EXAMPLES = 3
NAME_MARKUP = "`<>[]|"  # what begins HTML, a link, code or the next cell of a table
MARKUP = "*_" + NAME_MARKUP


def write_card(layout: RunLayout, out: Path) -> Recorded:
    """Write the card and return the run that it is about."""
    run = read_run(layout)
    write_text(out, model_card(run))
    return run


def model_card(run: Recorded) -> str:
    """The card as Markdown."""
    sections = {
        "Model": _table(_model(run)),
        "Training data": _table(_data(run)),
        "Training": _table(_training(run)),
        "Results": _results(run),
        "What it writes": _examples(run),
        "Licence": _licence(run),
        "Limits": "\n".join(f"* {one}" for one in _limits(run)),
    }
    experiment, variant = (_plain(_setting(run.config, name)) for name in ("experiment", "variant"))
    about = f"A language model with {_weights(run)}, trained by the experiment `{experiment}`"
    tags = "bitnet, 1.58-bit, text-generation" if _is_ternary(run) else "text-generation"
    head = f"---\ntags: [{tags}]\n---\n\n# {_plain(run.name)}\n\n{about}, variant `{variant}`.\n"
    return head + "".join(f"\n## {title}\n\n{text}\n" for title, text in sections.items())


def _is_ternary(run: Recorded) -> bool:
    return bool(run.section("model").get("weights", "ternary") == "ternary")


def _weights(run: Recorded) -> str:
    return (
        "ternary weights and int8 activations (BitNet b1.58, arXiv:2402.17764)"
        if _is_ternary(run)
        else "full-precision weights"
    )


def _model(run: Recorded) -> list[tuple[str, str]]:
    model = run.section("model")
    found = [("parameters", _setting(model, "total_params"))]
    found += [
        (f"parameters in {part.name}", f"{part.parameters:,} ({part.share:.1%}, {part.kind})")
        for part in tables.parts(run)
    ]
    return [*found, *((name, _setting(model, name)) for name in SHAPE)]


def _data(run: Recorded) -> list[tuple[str, str]]:
    data, prints = run.section("data"), run.fingerprint
    files = data.get("data")
    names = (
        ", ".join(Path(str(one)).name for one in files)
        if isinstance(files, list) and files
        else _setting(data, "dataset")
    )
    held_out = number(prints.get("held_out_documents"))
    return [
        ("data", names),
        ("revision", _setting(prints, "hf_revision")),
        (
            "training tokens there",
            _setting(prints, "prepared_tokens" if "prepared_tokens" in prints else "dataset_size_tokens"),
        ),
        ("read this often", _setting(prints, "epochs" if "epochs" in prints else "expected_repetition_rate")),
        ("held out", "—" if held_out is None else f"{held_out:,.0f} documents, never trained on"),
        ("tokenizer", tables.setting(data.get("tokenizer_kind") or data.get("tokenizer"))),
        ("its entries", _setting(prints, "tokenizer_vocab_size")),
        ("sha256 of the first 1,000 ids", _setting(prints, "first_1000_token_ids_sha256")),
    ]


def _training(run: Recorded) -> list[tuple[str, str]]:
    facts = {name: f"{value} {unit}".strip() for name, value, unit in tables.facts(run)}
    machine = run.provenance.get("gpu_model") or run.provenance.get("cpu_model")
    found = [
        (name, facts[name])
        for name in ("updates", "tokens seen", "training time", "training loss", "held-out loss")
    ]
    found += [("hardware", tables.setting(machine)), ("torch", _setting(run.provenance, "torch_version"))]
    found += [
        (
            "code",
            _setting(run.provenance, "git_commit")
            + (" with changes" if run.provenance.get("git_dirty") else ""),
        )
    ]
    training = run.section("training")
    return [*found, *((name, _setting(training, name)) for name in RECIPE if training.get(name) is not None)]


def _results(run: Recorded) -> str:
    measured = tables.measured(run)
    if not measured:
        return f"Not judged yet: `bitnet evaluate {_plain(run.name)}`."
    verdict = (
        f"Verdict of `bitnet evaluate` at update {_setting(run.verdict, 'step')}: "
        f"**{_plain(_setting(run.verdict, 'verdict'))}**."
    )
    judged = [
        f"* {'met' if one.met else '**not met**'}: {_plain(one.name)} (measured {_plain(one.value)})"
        for one in tables.criteria(run)
    ]
    cases = [(row.name.replace("_", " "), *row.values) for row in measured]
    return "\n".join([verdict, "", *judged, "", _table(cases, ("metric", "value", "cases"))])


def _examples(run: Recorded) -> str:
    last = max((one.step for one in run.samples), default=None)
    chosen = [one for one in run.samples if one.step == last and one.mode == "typical"][:EXAMPLES]
    if not chosen:
        return "No samples were kept."
    shown = [
        f"> {_plain(one.prompt, MARKUP)} **{_plain(one.text.removeprefix(one.prompt), MARKUP)}**"
        for one in chosen
    ]
    about = f"Sampled at update {last}, not chosen by anybody; the model's part is bold."
    return "\n\n".join([about, *shown])


def _plain(text: str, markup: str = NAME_MARKUP) -> str:
    """A text on one line, with these characters escaped."""
    return " ".join(re.sub(rf"([{re.escape(markup)}])", r"\\\1", text).split())


def _licence(run: Recorded) -> str:
    data = run.section("data")
    name = _plain(tables.setting(data.get("dataset")))
    if name in LICENCES:
        about_data = f"`{name}` is under {LICENCES[name]}."
    elif "data" in data:
        about_data = f"`{name}`: the files' own; the run does not record it."
    elif data.get("conversations"):
        about_data = (
            "the card beside the conversations says who wrote them; the run that this one began from has its "
            "own data."
        )
    else:
        about_data = "made by the experiment's own program; free of anybody's rights."
    return (
        "Weights: not chosen yet; whoever publishes them decides, within the terms of the data.\n\nData: "
        f"{about_data}"
    )


def _limits(run: Recorded) -> Iterable[str]:
    yield (
        "It says what is likely in its training data, true or not. Nothing was done to make it safe or "
        "polite."
    )
    yield f"It reads at most {_setting(run.section('model'), 'max_seq_length')} tokens."
    missed = [_plain(one.name) for one in tables.criteria(run) if not one.met]
    if missed:
        yield f"It does not meet what was asked of it: {', '.join(missed)}."
    if not run.verdict:
        yield "It was never judged."
    state = run.summary.get("state")
    if state != "done":
        yield f"Its training is not finished (state: {_plain(tables.setting(state))})."
    if run.anomalies:
        yield f"{len(run.anomalies)} anomalies were noted in training (folder `anomalies/`)."
    if run.diagnosis:
        healthy = run.diagnosis.get("healthy")
        yield (
            "`bitnet diagnose` found it healthy."
            if healthy
            else f"`bitnet diagnose` suspects: {_plain(_setting(run.diagnosis, 'suspect'))}."
        )


def _setting(record: dict[str, Any], name: str) -> str:
    return tables.setting(record.get(name))


def _table(rows: Sequence[Sequence[str]], head: Sequence[str] = ("", "")) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_plain(cell) for cell in line) + " |" for line in lines)
