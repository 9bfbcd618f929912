"""No verb lets a foreign escape sequence reach the terminal: one test for each, with a run whose every text
holds one.

The run stands in a folder with an escape sequence in its name, its model writes them, and so do its samples
and its data.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from bitnet.cli.main import VERBS
from bitnet.diagnose.finding import Check
from conftest import TINY_MODEL, Command, Result, run_command
from corpora import small_tokenizer, write_txt

pytestmark = pytest.mark.slow


EVIL = "\x1b[2Jevil\x07"
TRAIN = [
    "train",
    "tinystories",
    "--variant",
    "quick",
    "--device",
    "cpu",
    *TINY_MODEL,
    "--model.vocab-size",
    16,
    "--tokenizer",
    "characters",
    "--model.max-seq-length",
    64,
    "--seq-len",
    32,
    "--batch-size",
    4,
    "--train.compile",
    "off",
    "--data.judged-prompts",
    4,
    "--data.eval-sequences",
    2,
    "--data.judged-sequences",
    2,
    "--num-steps",
    40,
]


@pytest.fixture(scope="module")
def _evil_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, a cache and one run, of a model that has learned nothing but escape sequences."""
    folder = tmp_path_factory.mktemp("evil")
    write_txt(folder / f"{EVIL}.txt", [f"{EVIL} {EVIL * (number % 7 + 12)}" for number in range(60)])
    result = run_command(
        *TRAIN,
        "--data",
        folder / f"{EVIL}.txt",
        "--runs-dir",
        folder / "runs",
        "--run-id",
        "run",
        "--cache-dir",
        folder / "c",
    )
    assert result.code == 0, result.err
    (folder / "runs" / "run").rename(folder / "runs" / EVIL)
    return folder


@pytest.fixture
def evil(_evil_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run, in a folder of its own; the working directory is beside it."""
    shutil.copytree(_evil_folder / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs" / EVIL


def assert_shown(result: Result, *, named: bool = True) -> None:
    """named: the text must be there, with its escape sequence in a form to read."""
    for stream in (result.out, result.err):
        assert [c for c in stream if (ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160] == []
    assert not named or "␛[2Jevil␇" in result.out + result.err


def test_status(bitnet: Command, evil: Path) -> None:
    assert_shown(bitnet("status", evil))
    assert json.loads(bitnet("status", evil, "--json").out)["run"] == EVIL


def test_runs(bitnet: Command, evil: Path) -> None:
    assert_shown(bitnet("runs"))
    (evil.parent / "two\nlines").mkdir()
    shutil.copytree(evil / "meta", evil.parent / "two\nlines" / "meta")
    assert len(bitnet("runs").out.splitlines()) == 3


def test_complete(bitnet: Command, evil: Path) -> None:
    result = bitnet("complete", evil, EVIL, "--max-new-tokens", 30)
    assert_shown(result)
    assert result.out.count("␛") > 1  # the prompt's, and what the model wrote


def test_chat(bitnet: Command, evil: Path) -> None:
    result = bitnet("chat", evil, "-p", EVIL, "--max-new-tokens", 30, "--temperature", 0)
    assert result.code == 0, result.err
    assert_shown(result, named=False)
    assert "␛" in result.out  # what the model wrote


def test_play(bitnet: Command, evil: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda prompt: "q")
    assert_shown(bitnet("play", evil))


def test_evaluate(bitnet: Command, evil: Path) -> None:
    result = bitnet("evaluate", evil, "--show", 3)
    assert result.code == 0, result.err
    assert_shown(result)


def test_diagnose(bitnet: Command, evil: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check = Check(
        name=f"rows {EVIL}",
        suspect="data",
        ok=False,
        value=EVIL,
        expected="text",
        source="the data",
        detail=f"it says {EVIL}",
    )
    monkeypatch.setattr("bitnet.diagnose.run_checks.examine", lambda subject: iter([check]))
    assert_shown(bitnet("diagnose", evil))


def test_compare_plot_and_report(bitnet: Command, evil: Path) -> None:
    for words in (("plot", evil), ("report", evil), ("report", evil, "--card"), ("compare", evil, evil)):
        assert_shown(bitnet(*words))


def test_tokenizer_inspect(bitnet: Command, evil: Path) -> None:
    assert_shown(bitnet("tokenizer", "inspect", evil / "tokenizer", "--text", EVIL), named=False)
    assert_shown(bitnet("tokenizer", "inspect", evil / "nothing"))


def test_prepare(bitnet: Command, evil: Path, tmp_path: Path) -> None:
    small_tokenizer().save(tmp_path / "tokenizer")
    write_txt(tmp_path / f"{EVIL}.txt", [f"story {number}" for number in range(300)])
    assert_shown(
        bitnet(
            "prepare",
            "--data",
            tmp_path / f"{EVIL}.txt",
            "--tokenizer",
            tmp_path / "tokenizer",
            "--out",
            tmp_path / EVIL,
        )
    )


def test_train(bitnet: Command, evil: Path) -> None:
    assert_shown(bitnet(*TRAIN, "--num-steps", 1, "--data", evil / "nothing.txt"))


def test_voice(bitnet: Command, tmp_path: Path) -> None:
    (tmp_path / "topics.txt").write_text("the moon\n")
    assert_shown(
        bitnet(
            "voice",
            "prompts",
            "--topics",
            tmp_path / "topics.txt",
            "--teacher",
            "rules",
            "--out",
            tmp_path / EVIL,
        )
    )
    assert_shown(
        bitnet(
            "voice",
            "answers",
            "--prompts",
            tmp_path / EVIL,
            "--teacher",
            "rules",
            "--out",
            tmp_path / f"{EVIL}2",
        )
    )


def test_cost(bitnet: Command, tmp_path: Path) -> None:
    table = tmp_path / "devices.toml"
    named = json.dumps(EVIL)
    table.write_text(
        f'[[device]]\nname = {named}\nkind = "cuda"\nmemory_gb = 8\nsustained_tflops = 2\n'
        'basis = "timed"\nmeasured = true\n'
    )
    assert_shown(bitnet("cost", "1B", "--devices", table))


@pytest.mark.parametrize("verb", VERBS)
def test_an_error_message(bitnet: Command, verb: str) -> None:
    result = bitnet(verb, EVIL, f"--{EVIL}")
    assert result.code == 2
    assert_shown(result, named=False)
    assert len(result.err.splitlines()) == 1
