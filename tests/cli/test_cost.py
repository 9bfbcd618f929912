"""`bitnet cost`: names and shapes, budgets, tables, bad input, and a page that is true."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from bitnet.cost.devices import TABLE
from bitnet.experiments.arithmetic import QUICK
from conftest import TINY_MODEL, Command

SHAPE = ["--model.vocab-size", "32", *TINY_MODEL, "--model.max-seq-length", "24"]


def test_an_experiment_is_taken_as_it_stands(bitnet: Command) -> None:
    found = bitnet("cost", "arithmetic", "--variant", "quick", "--json").json
    assert found["name"] == "arithmetic (quick)"
    assert found["parameters"] == 791_680
    assert (found["tokens"], found["updates"]) == (QUICK.train.total_tokens, QUICK.train.total_steps)
    assert found["measured"] is None
    assert found["memory"]["cpu"]["optimizer"] == 4 * 791_680 + 4 * (
        791_680 - found["ternary_parameters"]
    )  # Muon
    assert {row["gb"] for row in found["fits"]} == {8, 12, 24, 80}


def test_the_baseline_is_the_95m_run_on_any_machine(bitnet: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """A laptop was told the price of the smoke run, 819,200 tokens, where the question is what the days on a
    GPU cost.
    """
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    found = bitnet("cost", "baseline", "--json").json
    assert found["name"] == "baseline (reference)"
    assert (found["parameters"], found["updates"], found["tokens"]) == (95_367_936, 60_000, 1_966_080_000)
    assert bitnet("cost", "baseline", "--variant", "smoke", "--json").json["updates"] == 200


def test_the_page_says_the_same_and_what_is_assumed(bitnet: Command) -> None:
    result = bitnet("cost", "arithmetic", "--variant", "quick")
    assert result.code == 0
    budget = f"{QUICK.train.total_tokens:,} in {QUICK.train.total_steps} updates"
    for words in ("791,680 parameters", budget, "8 GB: yes", "assumed", "tensors at the peak", str(TABLE)):
        assert words in result.out, words
    assert "measured now" not in result.out


def test_a_shape_gets_twenty_tokens_for_each_parameter(bitnet: Command) -> None:
    found = bitnet("cost", *SHAPE, "--json").json
    assert found["training"]["seq_len"] == 24
    assert found["tokens_at_20"] <= found["tokens"] < found["tokens_at_20"] + found["tokens_per_update"]
    assert bitnet("cost", "shape", *SHAPE, "--json").json == found


@pytest.mark.parametrize("name", ["7B", "7b"])
def test_a_preset_by_name(bitnet: Command, name: str) -> None:
    found = bitnet("cost", name, "--json").json
    assert found["parameters"] == 6_738_415_616
    assert found["tokens_per_update"] == 2**20
    assert not any(row["largest_batch"] for row in found["fits"])
    assert "does not fit, not even one row" in bitnet("cost", name).out


def test_budgets_and_overrides(bitnet: Command) -> None:
    base = ["cost", "arithmetic", "--variant", "quick", "--json"]
    assert bitnet(*base, "--tokens", "1e6").json["updates"] == math.ceil(1e6 / QUICK.train.tokens_per_step)
    assert bitnet(*base, "--tokens-per-parameter", "20").json["tokens_per_parameter"] == pytest.approx(
        20, rel=0.01
    )
    assert bitnet("cost", *SHAPE, "--train.total-steps", "7", "--json").json["updates"] == 7
    full = bitnet(*base, "--weights", "full", "--batch-size", "8").json
    assert (
        full["ternary_parameters"],
        full["memory"]["cpu"]["ternary_codes"],
        full["training"]["batch_size"],
    ) == (0, 0, 8)
    wide = bitnet(*base, "--model.hidden-size", "256").json
    assert wide["parameters"] > full["parameters"]


def test_a_table_of_ones_own(bitnet: Command, tmp_path: Path) -> None:
    table = tmp_path / "mine.toml"
    table.write_text(
        '[[device]]\nname = "my card"\nkind = "cuda"\nmemory_gb = 8\nsustained_tflops = 2\n'
        'basis = "timed"\nmeasured = true\n'
    )
    rows = bitnet("cost", "arithmetic", "--devices", table, "--json").json["devices"]
    assert [row["device"]["name"] for row in rows] == ["my card"]
    assert rows[0]["usd"] is None
    assert "my card" in bitnet("cost", "arithmetic", "--devices", table).out


@pytest.mark.slow
def test_measuring_replaces_the_assumed_rate(bitnet: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitnet.cost.measure.SECONDS", 0.1)
    words = [
        "cost",
        *SHAPE,
        "--batch-size",
        "1",
        "--train.total-steps",
        "50",
        "--measure",
        "--device",
        "cpu",
    ]  # its smallest part is all
    measured = bitnet(*words, "--json").json["measured"]
    assert measured["whole"]
    assert measured["seconds"] == pytest.approx(50 * measured["update_s"])
    page = bitnet(*words).out
    assert "measured now on this machine (cpu)" in page
    assert "the whole micro-batch" in page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name an experiment or a shape first"),
        (["aritmetic"], 'Did you mean "arithmetic"?'),
        (["basline"], 'Did you mean "baseline"?'),
        (["9B"], "There is: 1B, 3B, 7B"),
        (["arithmetic", "--variant", "quik"], 'Did you mean "quick"?'),
        (["1B", "--variant", "quick"], "--variant is quick, but 1B (shape) has no variants"),
        (["1B", "--tokens", "-5"], "--tokens is -5.0; it must be at least 1.0"),
        (["1B", "--tokens", "nan"], "--tokens is nan"),
        (["1B", "--tokens-per-parameter", "0"], "--tokens-per-parameter is 0"),
        (["1B", "--tokens", "1e9", "--tokens-per-parameter", "2"], "give one of them"),
        (["1B", "--tokens", "1e300"], "--tokens is 1e+300; it must be at most"),
        (["1B", "--seq-len", "4096"], "longer than model.max_seq_length"),
        (["1B", "--batch-size", "0"], "batch_size is 0"),
        (["1B", "--model.num-heads", "3"], "not divisible by model.num_heads 3"),
        (["1B", "--model.hiden-size", "64"], 'Did you mean "--model.hidden-size"?'),
        (["--model.hidden-size", "64"], "--model.vocab-size"),
        (["1B", "--devices", "nowhere.toml"], "there is no file nowhere.toml"),
        (["1B", "--measure", "--device", "tpu"], "--device is 'tpu'"),
        (["nowhere.py"], "there is no file nowhere.py"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(bitnet: Command, words: list[str], message: str) -> None:
    result = bitnet("cost", *words)
    assert result.code == 2, result.out
    assert message in result.err
    assert len(result.err.strip().splitlines()) == 1
