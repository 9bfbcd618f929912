"""The model card: what the files of a run say, and nothing that they do not."""

from __future__ import annotations

import json
import re
from pathlib import Path

from synthetic import write_run

from bitnet.report.card import model_card
from bitnet.report.read_run import read_run
from bitnet.run.layout import RunLayout
from conftest import Command


def verdict(met: bool) -> dict[str, object]:
    criterion = {
        "name": "exact_match >= 0.99",
        "metric": "exact_match",
        "value": 0.5,
        "threshold": 0.99,
        "met": met,
    }
    return {
        "step": 40,
        "verdict": "PASS" if met else "FAIL",
        "metrics": {"exact_match": 0.5, "exact_match_cases": 600},
        "criteria": [criterion],
    }


def card_of(layout: RunLayout) -> str:
    return model_card(read_run(layout))


def test_it_tells_what_was_measured_and_what_was_missed(tmp_path: Path) -> None:
    layout = RunLayout(write_run(tmp_path / "r", 40))
    layout.verdict.parent.mkdir(parents=True, exist_ok=True)
    layout.verdict.write_text(json.dumps(verdict(met=False)))
    card = card_of(layout)
    assert "| exact match | 0.5 | 600 |" in card
    assert "| parameters | 791,680 |" in card
    assert "* **not met**: exact_match ≥ 0.99 (measured 0.5)" in card
    assert "It does not meet what was asked of it: exact_match ≥ 0.99." in card
    layout.verdict.write_text(json.dumps(verdict(met=True)))
    assert "does not meet" not in card_of(layout)


def test_what_is_not_there_is_not_claimed(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path / "bare")
    layout.root.mkdir()
    card = card_of(layout)
    assert "Not judged yet: `bitnet evaluate bare`." in card
    assert "It was never judged." in card
    assert "No samples were kept." in card
    assert "| parameters | — |" in card


def test_the_command_writes_it_into_the_run(bitnet: Command, tmp_path: Path) -> None:
    layout = RunLayout(write_run(tmp_path / "r", 40))
    done = bitnet("report", "r", "--card", "--runs-dir", tmp_path)
    assert done.code == 0, done.err
    assert (layout.root / "MODEL_CARD.md").read_text() == card_of(layout)
    for words, message in (
        (["r", "--card", "--out", tmp_path / "card.html"], "it must end in .md"),
        (["r", "r2", "--card"], "a model card is about one run"),
    ):
        refused = bitnet("report", *words, "--runs-dir", tmp_path)
        assert refused.code == 2
        assert message in refused.err


def test_texts_cannot_break_out_of_it(tmp_path: Path) -> None:
    layout = RunLayout(write_run(tmp_path / "r", 40))
    row = {
        "step": 10**6,
        "mode": "typical",
        "prompt": "a|b",
        "generated_text": "**bold** <script>\n\n# Heading",
    }
    with layout.samples.open("a") as file:
        file.write(json.dumps(row) + "\n")
    card = card_of(layout)
    assert "<script>" not in card
    assert "\n# Heading" not in card


def test_names_and_settings_cannot_either(tmp_path: Path) -> None:
    """A foreign configuration, verdict and file name: a card is published, and read by programs that render
    HTML.
    """
    markup = "x`</code><script>alert(1)</script>[a](javascript:b)|\n# Heading"
    layout = RunLayout(write_run(tmp_path / "<img src=x>", 40))
    config = json.loads(layout.config.read_text())
    config |= {"experiment": markup, "variant": markup}
    config["data"] |= {"dataset": markup, "tokenizer": markup, "data": [markup]}
    layout.config.write_text(json.dumps(config))
    criterion = {"name": markup, "metric": markup, "value": 0.5, "threshold": 0.99, "met": False}
    layout.verdict.write_text(
        json.dumps(
            {"run": markup, "step": 40, "verdict": markup, "metrics": {markup: 0.5}, "criteria": [criterion]}
        )
    )
    layout.diagnosis.write_text(json.dumps({"healthy": False, "suspect": markup, "checks": []}))
    card = card_of(layout)
    assert "alert(1)" in card
    assert not re.search(r"(?<!\\)<(script|img|/code)|\n# Heading|(?<!\\)\]\(", card)
