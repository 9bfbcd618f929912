"""Bad input: one clear line, exit code 2, nothing lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import TINY_TRAIN, Command


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], 'Did you mean "train"?'),
        (["train"], "name an experiment first"),
        (["train", "arithmetics"], 'Did you mean "arithmetic"?'),
        (["train", "arithmetic", "--variant", "quik"], 'Did you mean "quick"?'),
        (["train", "arithmetic", "--num-step", "3"], 'Did you mean "--num-steps"?'),
        (["train", "arithmetic", "--model.hiden-size", "64"], 'Did you mean "--model.hidden-size"?'),
        (["train", "arithmetic", "--num-steps", "many"], "which is not a whole number"),
        (["train", "arithmetic", "--num-steps", "0"], "--num-steps is 0"),
        (["train", "arithmetic", "--batch-size", "-1"], "batch_size is -1"),
        (["train", "arithmetic", "--model.activation", "gelu"], "gelu"),
        (["train", "arithmetic", "--model.num-heads", "3"], "not divisible by model.num_heads 3"),
        (
            ["train", "arithmetic", "--model.num-heads", "4", "--model.num-kv-heads", "3"],
            "model.num_kv_heads 3",
        ),
        (
            [
                "train",
                "arithmetic",
                "--model.hidden-size",
                "36",
                "--model.num-heads",
                "12",
                "--model.num-kv-heads",
                "6",
            ],
            "is odd",
        ),
        (["train", "arithmetic", "--seq-len", "4096"], "longer than model.max_seq_length"),
        (["train", "arithmetic", "--train.peak-lr", "0"], "peak_lr is 0.0"),
        (["train", "arithmetic", "--variant", "reference", "--data.min-right", "0"], "data.min_right is 0"),
        (["train", "arithmetic", "--device", "tpu"], "--device is 'tpu'"),
        (["train", "arithmetic", "--weights", "full", "--train.product", "int8"], "product is int8"),
        (["train", "arithmetic", "--weights", "full", "--train.product", "packed"], "product is packed"),
        (
            ["train", "arithmetic", "--train.product", "float", "--train.input-gradient", "int8"],
            "train.input_gradient is int8",
        ),
        (
            ["train", "arithmetic", "--weights", "full", "--train.weight-gradient", "bf16"],
            "train.weight_gradient is bf16",
        ),
        (["train", "arithmetic", "--run-id", "a/b"], "'a/b' is not allowed"),
        (["train", "arithmetic", "--run-id", ".."], "'..' is not allowed"),
        (["train", "arithmetic", "--run-id", "latest"], "is reserved"),
        (["train", "arithmetic", "--run-id", "arithmetic"], "is reserved"),
        (["train", "nowhere.py"], "there is no file nowhere.py"),
        (["evaluate", "nothing"], "there is no run 'nothing'"),
        (["evaluate"], "RUN is missing"),
        (["complete", "tiny"], "give either a prompt or --interactive"),
        (["complete", "tiny", "2 plus 3"], "is not in this model's alphabet"),
        (["complete", "tiny", ""], "the prompt is empty"),
        (["complete", "tiny", "1" * 65], "reads at most 64"),
        (["complete", "tiny", "1 + 1 = ", "--temperature", "-1"], "temperature is -1"),
        (["complete", "tiny", "1 + 1 = ", "--top-p", "0"], "top_p is 0"),
        (["complete", "tiny", "1 + 1 = ", "--max-new-tokens", "0"], "--max-new-tokens is 0"),
        (["plot", "tiny", "--out", "picture.jpg"], "must end in .png"),
        (["prepare", "arithmetic", "--out", "x.txt", "--count", "0"], "--count is 0"),
    ],
)
def test_one_line_and_exit_code_two(bitnet: Command, runs: Path, words: list[str], message: str) -> None:
    where = [] if words[0] in {"trian", "prepare"} else ["--runs-dir", runs]
    before = sorted(path.name for path in runs.iterdir())
    result = bitnet(*words, *where)
    assert result.code == 2, result.out
    assert message in result.err
    assert len(result.err.strip().splitlines()) == 1
    assert sorted(path.name for path in runs.iterdir()) == before


def test_same_id_with_changed_settings_is_refused_with_the_difference(bitnet: Command, runs: Path) -> None:
    before = (runs / "tiny" / "meta" / "config.json").read_bytes()
    result = bitnet(
        *TINY_TRAIN,
        "--num-steps",
        8,
        "--train.checkpoint-every",
        3,
        "--seed",
        7,
        "--run-id",
        "tiny",
        "--runs-dir",
        runs,
    )
    assert result.code == 2
    assert "training.seed: 42 -> 7" in result.err
    assert (runs / "tiny" / "meta" / "config.json").read_bytes() == before


def test_runs_folder_that_cannot_be_written(bitnet: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for folder, message in (
        (tmp_path / "file", "is a file, not a folder"),
        (tmp_path / "file" / "runs", "cannot be written"),
    ):
        result = bitnet(*TINY_TRAIN, "--runs-dir", folder)
        assert result.code == 2
        assert message in result.err
        assert len(result.err.strip().splitlines()) == 1
    assert (tmp_path / "file").read_text() == "mine"


def test_errors_as_json(bitnet: Command, runs: Path) -> None:
    result = bitnet("evaluate", "nothing", "--json", "--runs-dir", runs)
    assert result.code == 2
    assert "nothing" in json.loads(result.err)["error"]


def test_help_is_instant_because_it_imports_nothing_heavy() -> None:
    check = (
        "import sys; from bitnet.cli.main import main; main(['--help']); print([m for m in ('torch', "
        "'numpy', 'tyro') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")
    assert "experiments" in done.stdout


@pytest.mark.slow
def test_verb_help_exits_with_zero() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bitnet", "train", "arithmetic", "--help"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert "--train.peak-lr" in done.stdout


def test_prepare_writes_whole_files_and_never_over_another(bitnet: Command, tmp_path: Path) -> None:
    out = tmp_path / "a.txt"
    assert bitnet("prepare", "arithmetic", "--out", out, "--count", "1_000").code == 0
    lines = out.read_text().splitlines()
    assert len(lines) == 1000
    assert all(eval(left) == int(right) for left, right in (line.split(" = ") for line in lines))
    again = bitnet("prepare", "arithmetic", "--out", out, "--count", "5")
    assert again.code == 2
    assert out.read_text().splitlines() == lines


def test_evaluate_check_turns_the_verdict_into_the_exit_code(bitnet: Command, runs: Path) -> None:
    result = bitnet("evaluate", "tiny", "--check", "--json", "--runs-dir", runs)
    verdict = result.json
    assert result.code == 1
    assert verdict["verdict"] == "FAIL"
    assert verdict["run"] == "tiny"
    assert verdict["metrics"]["exact_match_cases"] == sum(
        verdict["metrics"][f"exact_match_{kind}_cases"] for kind in ("add", "sub")
    )
    assert verdict["criteria"][0]["met"] is False


def test_experiments_lists_the_exact_counts(bitnet: Command) -> None:
    rows = bitnet("experiments", "--json").json
    counts = {(row["name"], row["variant"]): row["parameters"] for row in rows}
    assert counts["arithmetic", "reference"] == counts["arithmetic", "best"] == 3_156_224
    assert [counts[name, "reference"] for name in ("tictactoe", "tinystories", "baseline", "bitnut")] == [
        10_634_112,
        11_408_256,
        95_367_936,
        132_963_072,
    ]
    assert all({"name", "variant", "parameters", "tokens"} <= row.keys() for row in rows)
