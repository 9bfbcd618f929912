"""`bitnet train --evaluate`, and the recipes that stand on it: the run that is judged is the one that was
trained.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from bitnet.run.layout import list_runs
from conftest import TINY_TRAIN, Command, Result
from corpora import stories, write_txt

JUSTFILE = Path(__file__).parents[2] / "justfile"
SMALL_MODEL = [
    "--model.vocab-size",
    320,
    "--model.max-seq-length",
    96,
    "--model.hidden-size",
    32,
    "--model.num-layers",
    1,
    "--model.num-heads",
    2,
    "--model.num-kv-heads",
    1,
    "--model.ffn-hidden-size",
    48,
]
SMALL_TEXT = [
    "--device",
    "cpu",
    *SMALL_MODEL,
    "--seq-len",
    32,
    "--batch-size",
    4,
    "--num-steps",
    2,
    "--train.eval-cases",
    2,
    "--train.grad-accumulation-steps",
    1,
    "--train.compile",
    "off",
    "--allow-repeat",
    "--data.held-out-one-in",
    10,
    "--data.judged-prompts",
    4,
]


def stop(run: Path) -> None:
    """As if a signal had stopped the run."""
    status = run / "status.json"
    status.write_text(json.dumps({**json.loads(status.read_text()), "state": "stopped"}))


def run_recipe(bitnet: Command, name: str, *arguments: object) -> Result:
    """The only line of a recipe, with these arguments where it has "$@"."""
    body = re.search(
        rf"^{name}\b.*: _ready\n((?:    .*\n)+)", JUSTFILE.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert body is not None
    (line,) = body[1].splitlines()
    words = [word for part in shlex.split(line) for word in (arguments if part == "$@" else [part])]
    assert words[0] == "bitnet"
    return bitnet(*words[1:])


@pytest.mark.slow
def test_the_run_of_this_command_is_judged_even_where_another_is_newer(
    bitnet: Command, tmp_path: Path
) -> None:
    words = [*TINY_TRAIN, "--runs-dir", tmp_path, "--num-steps", 2, "--json"]
    older = bitnet(*words).json["run"]
    stop(tmp_path / older)
    newer = bitnet(*words, "--seed", 7).json["run"]
    judged = bitnet(*words, "--evaluate")
    assert judged.code == 0
    assert judged.json["run"] == older != newer
    assert judged.json["verdict"] == "FAIL"
    assert not (tmp_path / newer / "eval" / "verdict.json").exists()


def test_check_makes_a_missed_criterion_the_exit_code(bitnet: Command, tmp_path: Path) -> None:
    words = [*TINY_TRAIN, "--runs-dir", tmp_path, "--num-steps", 2]
    assert bitnet(*words, "--run-id", "a", "--evaluate").code == 0
    again = bitnet(*words, "--run-id", "a", "--check")
    assert again.code == 1
    assert "already done" in again.out
    assert again.out.rstrip().endswith("FAIL")


@pytest.mark.slow
def test_both_runs_are_judged_where_a_control_is_trained(bitnet: Command, tmp_path: Path) -> None:
    assert (
        bitnet(
            *TINY_TRAIN, "--runs-dir", tmp_path, "--num-steps", 2, "--run-id", "a", "--control", "--evaluate"
        ).code
        == 0
    )
    assert all((tmp_path / name / "eval" / "verdict.json").is_file() for name in ("a", "a_control"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "run_id"),
    [
        ("exp-tinystories", r"bitnet_18K_tinystories_\d+"),
        ("exp-baseline", r"bitnet_18K_(first|second)_T256_\d+"),
    ],
)
def test_a_recipe_on_other_data_begins_another_run_and_judges_it(
    bitnet: Command, tmp_path: Path, recipe: str, run_id: str
) -> None:
    """The recipes once had a fixed --run-id: a second one with other data was refused."""
    files = [
        write_txt(tmp_path / f"{name}.txt", stories(200, seed))
        for name, seed in (("first", 1), ("second", 2))
    ]
    common = [*SMALL_TEXT, "--cache-dir", tmp_path / "cache", "--runs-dir", tmp_path / "runs"]
    for count, file in enumerate(files, start=1):
        result = run_recipe(bitnet, recipe, "--data", file, *common)
        assert result.code == 0, result.err
        runs = list_runs(tmp_path / "runs")
        assert len(runs) == count
        assert re.fullmatch(run_id, runs[-1].run_id)
        assert runs[-1].verdict.is_file()
    stop(runs[0].root)
    runs[0].verdict.unlink()
    assert run_recipe(bitnet, recipe, "--data", files[0], *common).code == 0
    assert len(list_runs(tmp_path / "runs")) == 2, "the same command continues the unfinished run"
    assert runs[0].verdict.is_file()
