"""One rule for a flag that is given twice, for every verb: the last one counts, however it is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bitnet.cli.flags import last_value
from conftest import Result

Command = Callable[..., Result]
TWICE = (
    ["--variant", "reference", "--variant", "quick"],
    ["--variant=reference", "--variant=quick"],
    ["--variant=reference", "--variant", "quick"],
    ["--variant", "reference", "--variant=quick"],
)


@pytest.mark.parametrize("words", TWICE, ids=" ".join)
def test_the_last_variant_counts_for_training_and_for_its_price(bitnet: Command, words: list[str]) -> None:
    """`cost` took the first one where `train` took the last, and so priced another run than the one that was
    trained.
    """
    trained = bitnet("train", "arithmetic", *words, "--device", "cpu", "--dry-run", "--json").json
    priced = bitnet("cost", "arithmetic", *words, "--json").json
    assert trained["variant"] == "quick"
    assert priced["name"] == "arithmetic (quick)"
    assert priced["training"] == {key: trained["training"][key] for key in priced["training"]} | {
        "stage1_end": None
    }


def test_the_last_one_counts_for_other_flags_too(bitnet: Command, runs: Path, tmp_path: Path) -> None:
    nowhere = ["--runs-dir", tmp_path / "nowhere", "--runs-dir", runs]
    assert bitnet("status", "tiny", *nowhere, "--json").json["run"] == "tiny"
    assert (
        bitnet(
            "train",
            "arithmetic",
            "--device",
            "cpu",
            "--from",
            "nothing",
            "--from",
            "tiny",
            *nowhere,
            "--dry-run",
        ).code
        == 0
    )
    trained = bitnet(
        "train", "arithmetic", "--device", "cpu", "--seed", 1, "--seed=2", "--dry-run", "--json"
    ).json
    assert trained["training"]["seed"] == 2


def test_a_flag_may_be_written_with_underscores(bitnet: Command, runs: Path) -> None:
    assert last_value(["--runs_dir", "a"], "--runs-dir") == "a"
    assert last_value(["x", "--runs-dir"], "--runs-dir") is None
    assert last_value(["runs-dir=b"], "--runs-dir") is None
    assert (
        bitnet(
            "train", "arithmetic", "--device", "cpu", "--from", "tiny", "--runs_dir", runs, "--dry-run"
        ).code
        == 0
    )
