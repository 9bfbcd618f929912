"""The README says what is true: its tree, its commands, its tables."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bitnet.cli.catalogue import experiment_names
from bitnet.cli.main import VERBS, main
from conftest import Result
from corpora import stories, write_txt

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = sorted(page for page in (ROOT / "docs").rglob("*.md") if page.name != "log.md")
FILES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]
PAGES = [page.read_text(encoding="utf-8") for page in FILES]
FOREIGN_FLAGS = {"--index-url", "--porcelain", "--strict"}  # of pip, git and mypy
FOREIGN_FLAGS |= {"--kills", "--corruptions", "--full-disk", "--commands", "--hostile"}  # of benchmarks/reliability


def blocks(language: str) -> list[str]:
    return [block for page in PAGES for block in re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)]


def commands(program: str) -> list[list[str]]:
    lines = [line.split(" #")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return [shlex.split(line) for line in lines if line.split(" ")[0] in {program, f"./{program}"}]


def test_tree_names_every_module_and_no_other() -> None:
    tree = next(block for block in blocks("text") if block.startswith("src/bitnet/"))
    source = ROOT / "src" / "bitnet"
    named: dict[str, str] = {}
    for line in tree.splitlines()[1:]:
        match = re.match(r"  (\S+)\s+(.*)", line)
        if match:
            named[match[1]] = match[2]
    folders = {f"{path.name}/" for path in source.iterdir() if path.is_dir() and path.name != "__pycache__"}
    files = {path.name for path in source.glob("*.py")} - {"__init__.py", "__main__.py"}
    assert named.keys() == folders | files
    for folder in ("kernels", "nn", "text", "data", "optim", "generate", "run", "evaluate", "diagnose", "train"):
        modules = {path.stem for path in (source / folder).glob("*.py")} - {"__init__"}
        listed = set(re.split(r",\s*", named[f"{folder}/"].split(": ", 1)[1]))
        assert listed == modules, folder


def test_every_recipe_named_exists() -> None:
    recipes = subprocess.run(
        [str(Path(sys.executable).with_name("just")), "--summary"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    used = commands("just")
    assert used
    assert {words[1] for words in used} <= set(recipes)
    wanted = "demo train-simple play-tictactoe plot-loss check-status test check bench " + " ".join(
        f"exp-{name} train-{name}" for name in ("arithmetic", "tictactoe", "tinystories", "baseline")
    )
    assert set(wanted.split()) <= set(recipes)


def test_every_command_named_is_accepted(
    bitnet: Callable[..., Result], runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """train with --dry-run; the rest against a real run and small files. The flags that a page shows must parse.

    Fine-tuning, voices and chat are tried in tests/experiments/test_bitnut_sft.py.
    """
    monkeypatch.chdir(tmp_path)
    write_txt(Path("stories.txt"), stories(200))
    write_txt(Path("more-stories.txt"), ["1 + 2 = 3", "4 + 5 = 9"])  # the run at hand knows these characters
    Path("books").mkdir()
    write_txt(Path("books/a.txt"), stories(20))
    Path("my-devices.toml").write_text((ROOT / "src/bitnet/cost/devices.toml").read_text())
    used = commands("bitnet")
    assert len(used) >= 6
    for _, verb, *rest in used:
        assert verb in VERBS
        if verb == "train" and "--from" not in rest and not rest[0].startswith("path/"):
            result = bitnet(verb, *rest, "--dry-run")
        elif verb == "prepare":
            result = bitnet(verb, *(word.replace("1_000_000", "50") for word in rest))
        elif verb == "tokenizer":
            result = bitnet(verb, *(word.replace("2048", "320") for word in rest))
        elif verb == "cost":
            result = bitnet(verb, *(word for word in rest if word != "--measure"))
        elif verb == "complete":
            result = bitnet(verb, "latest", "1 + 2 = ", *(word for word in rest[2:] if word != "--interactive"), "--runs-dir", runs)
        elif verb in {"status", "plot", "evaluate", "report"} and not rest[0].startswith("bitnut_"):
            result = bitnet(verb, *rest, "--runs-dir", runs)
        else:
            continue
        assert result.code == 0, (verb, rest, result.err)


def flags_of(*words: str) -> set[str]:
    """The flags in the help of a command."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    return set(re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", out.getvalue()))


def test_every_flag_named_is_one_of_the_program() -> None:
    """In the pages and in the messages of the program itself; `--start-from`, which never existed, stood in a generated table."""
    commands = [(verb,) for verb in VERBS] + [("train", name) for name in experiment_names()]
    commands += [("tokenizer", "train"), ("tokenizer", "inspect"), ("voice", "prompts"), ("voice", "answers"), ("cost", "1B")]
    known = {"--version", *FOREIGN_FLAGS}.union(*(flags_of(*words) for words in commands))
    sources = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "src").rglob("*.py"))]
    named = {flag for text in [*PAGES, *sources] for flag in re.findall(r"(?<![\w-])--[a-z][a-z0-9_.-]*[a-z0-9]", text)}
    assert named - known == set()


def test_measured_tables_are_the_recorded_ones() -> None:
    command = [sys.executable, "benchmarks/readme.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_link_to_a_file_leads_somewhere() -> None:
    for file, page in zip(FILES, PAGES, strict=True):
        for target in re.findall(r"\]\(([^)#:]+)\)", page):
            assert (file.parent / target).exists(), (file.name, target)


@pytest.mark.parametrize("name", ["demo", "test"])
def test_the_two_commands_come_first(name: str) -> None:
    assert f"./just {name}" in blocks("bash")[0]
