"""What needs a package that is not installed says in one line which extra brings it, and every extra is one
of pyproject.toml.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest

from conftest import TINY_TRAIN, Command
from corpora import small_tokenizer, stories, write_txt

ROOT = Path(__file__).parents[1]
TRAIN_TOKENIZER = ("tokenizer", "train", "--vocab-size", 300, "--out", "made")
PREPARE = ("prepare", "--tokenizer", "tokenizer", "--out", "shards")
MISSING: list[tuple[str, str, tuple[object, ...]]] = [
    ("matplotlib", "plot", ("plot", "tiny", "--runs-dir", "runs")),
    ("matplotlib", "plot", ("compare", "tiny", "twin", "--runs-dir", "runs")),
    ("bokeh", "report", ("report", "tiny", "--runs-dir", "runs")),
    ("jinja2", "report", ("report", "tiny", "--runs-dir", "runs")),
    ("tokenizers", "text", (*TRAIN_TOKENIZER, "--data", "stories.txt")),
    ("tokenizers", "text", ("tokenizer", "inspect", "tokenizer")),
    ("datasets", "text", (*PREPARE, "--dataset", "set")),
    ("huggingface_hub", "text", (*PREPARE, "--dataset", "some/set")),
    ("huggingface_hub", "text", ("tokenizer", "inspect", "some/tokenizer")),
    ("pyarrow", "text", (*PREPARE, "--data", "stories.parquet")),
    ("transformers", "teacher", ("voice", "prompts", "--out", "prompts")),
    *(
        (name, name, (*TINY_TRAIN, "--num-steps", 1, "--mirror", name))
        for name in ("tensorboard", "wandb", "trackio")
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "extra", "words"), MISSING, ids=[f"{package} {words[0]}" for package, _, words in MISSING]
)
def test_one_line_names_the_extra(
    bitnet: Command,
    runs: Path,
    monkeypatch: pytest.MonkeyPatch,
    package: str,
    extra: str,
    words: tuple[object, ...],
) -> None:
    monkeypatch.chdir(runs.parent)
    (runs / "tiny").rename(runs / "twin")
    small_tokenizer().save(Path("tokenizer"))
    write_txt(Path("stories.txt"), stories(30))
    Path("set").mkdir()
    write_txt(Path("set/a.txt"), stories(30))
    Path("stories.parquet").write_bytes(b"PAR1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    bitnet(*TINY_TRAIN, "--num-steps", 8, "--train.checkpoint-every", 3, "--run-id", "tiny")
    for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    result = bitnet(*words)
    assert result.code == 2, result.out
    assert f"pip install 'bitnet[{extra}]'" in result.err
    assert len(result.err.splitlines()) == 1


def test_every_extra_that_a_message_names_exists_and_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {
        extra
        for path in (ROOT / "src").rglob("*.py")
        for extra in re.findall(r"bitnet\[(\w+)\]", path.read_text())
    }
    assert named - {"name"} <= project["optional-dependencies"].keys()
    pinned = {
        line.split("==")[0].lower()
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    for extra in ("text", "plot", "report", "teacher", "tensorboard"):
        needed = {re.split(r"[<>=\[]", one)[0].lower() for one in project["optional-dependencies"][extra]}
        assert needed <= pinned, extra
